# problem: add_any_stream
# solution: streams/honest/cuda_default_stream.py
# device: emulated
# expect: WRONG_VALUES
# why: the CPU runner holds a solution to SETTINGS['streams'] too
