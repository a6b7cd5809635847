# problem: cuda_add
# solution: kernels/sources/kernels.py
# expect: MEMORY_FAULT
# device: emulated
# size: writes_past_end
# why: no bounds test: the last block writes behind the output
