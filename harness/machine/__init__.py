"""This host: compilers, GPUs, versions, folders. Imports no torch at start."""
