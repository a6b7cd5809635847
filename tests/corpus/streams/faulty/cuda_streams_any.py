# problem: add_any_stream
# solution: streams/honest/cuda_default_stream.py
# device: cuda
# expect: WRONG_VALUES
# why: a launch on the default stream where the problem asks for any stream
