"""The CPU runner: compiles a solution's CUDA source for the host, runs it, and checks it.

Supported (docs/cuda_on_cpu.md has the details):

- launches ``kernel<T, 4><<<grid, block, shared, stream>>>(...)`` of templates, namespaced kernels,
  function pointers and kernels in macros and AT_DISPATCH lambdas; cudaLaunchKernel and
  cudaLaunchCooperativeKernel with an argument array; 1D to 3D grids and blocks;
- static and dynamic ``__shared__`` (opt-in above 48 KiB), ``__constant__`` and ``__device__``
  variables, ``__syncthreads`` and its counting forms, ``__syncwarp``, shuffles, votes, matches,
  warp reductions, all atomics, fences, cached loads and stores, vector types, half and bfloat16,
  CUDA's math, assert and printf;
- cooperative groups: block, tiles, coalesced lanes, reduce, scan, grid sync of grids that fit;
- the runtime API for memory, streams, events, devices, occupancy; c10/cuda and ATen/cuda headers;
  cuBLAS products (gemm, gemmStridedBatched, gemv, ger in float and double) through at::matmul.

Not supported; ``Unsupported`` names the line: inline PTX, wmma, the rest of cuBLAS, cuDNN,
cuRAND, CUB, Thrust, libcu++, CUTLASS, textures, graphs, clusters, dynamic parallelism, 8-bit
floats.
"""

from __future__ import annotations

from pathlib import Path

from harness.worker.cuda_on_cpu.build import compile_files, compile_inline
from harness.worker.cuda_on_cpu.runtime import Runtime, read_findings
from harness.worker.cuda_on_cpu.support import Support, obtain

__all__ = ["Runtime", "Support", "compile_files", "compile_inline", "prepare", "read_findings"]


def prepare(support_dir: Path) -> Support:
    """Build the run-time library and the precompiled header into ``support_dir``, once.

    Safe against concurrent and killed builders. The first time takes about 25 s and 550 MB; the
    result holds both figures.

    Raises:
        HarnessError: there is no compiler, or it cannot build the library.
    """
    return obtain(Path(support_dir))
