"""Names the package that a user's file needs and that is not installed."""

from __future__ import annotations

import importlib.util

# By the name that is imported: what pip installs it as. A name that is not here may be misspelt,
# or a file of the user's that is missing.
_PACKAGES = {
    "accelerate": "accelerate",
    "apex": "git+https://github.com/NVIDIA/apex",
    "causal_conv1d": "causal-conv1d",
    "cuda": "cuda-python",
    "cupy": "cupy-cuda12x",
    "cutlass": "nvidia-cutlass-dsl",
    "datasets": "datasets",
    "diffusers": "diffusers",
    "einops": "einops",
    "fla": "flash-linear-attention",
    "flash_attn": "flash-attn",
    "huggingface_hub": "huggingface-hub",
    "mamba_ssm": "mamba-ssm",
    "matplotlib": "matplotlib",
    "monai": "monai",
    "numba": "numba",
    "numpy": "numpy",
    "pandas": "pandas",
    "peft": "peft",
    "PIL": "pillow",
    "pycuda": "pycuda",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sentencepiece": "sentencepiece",
    "sklearn": "scikit-learn",
    "tilelang": "tilelang",
    "timm": "timm",
    "tokenizers": "tokenizers",
    "torch_geometric": "torch-geometric",
    "torch_scatter": "torch-scatter",
    "torchaudio": "torchaudio",
    "torchao": "torchao",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "triton": "triton",
    "xformers": "xformers",
}


def missing(error: BaseException) -> str:
    """Return what to install where an error says that a known package is not there, else ""."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    name = (error.name or "").split(".")[0]
    if name not in _PACKAGES or importlib.util.find_spec(name) is not None:
        return ""
    return (
        f"it needs the package {name}, which is not installed. Next: pip install {_PACKAGES[name]}"
    )
