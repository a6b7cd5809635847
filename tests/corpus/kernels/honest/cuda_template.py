# problem: cuda_add
# solution: kernels/sources/kernels.py
# device: emulated
# size: template
# why: a template under AT_DISPATCH_FLOATING_TYPES
