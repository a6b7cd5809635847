"""The side that runs modules: loads, builds, calls, and hands back raw tensors."""
