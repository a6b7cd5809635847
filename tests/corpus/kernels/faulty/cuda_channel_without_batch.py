# problem: cuda_norm
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT|WRONG_VALUES
# device: emulated
# size: channel_without_batch
# why: the channel index leaves the batch out: right for one sample only
