# problem: add_long
# solution: streams/honest/cuda_default_stream.py
# device: emulated
# warns: ignores the current stream
# why: the CPU runner sees that the launch names no stream
