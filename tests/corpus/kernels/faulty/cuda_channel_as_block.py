# problem: cuda_norm
# solution: kernels/sources/kernels.py
# expect: WRONG_VALUES
# device: emulated
# size: channel_as_block
# why: takes a channel to be one contiguous block
