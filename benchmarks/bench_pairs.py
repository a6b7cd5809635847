"""Check and time the shipped pairs on a GPU, for the people who tune them.

    python benchmarks/bench_pairs.py                   full sizes: error against float64, times
    python benchmarks/bench_pairs.py --exercise        every kernel once at small sizes, untimed:
                                                        the process to put under compute-sanitizer
    python benchmarks/bench_pairs.py groupnorm/hopper  one pair; no name after / is `solution`
    python benchmarks/bench_pairs.py --dtype float16   x and state in another dtype
    python benchmarks/bench_pairs.py --calls           host time per call at a tiny size

Times are CUDA events around a row of calls without a pause, and every call reads and writes other
memory than those before it, as much as the GPU holds: a kernel may look a tenth faster alone or on
the same buffers again and again (docs/kernels.md). Tensors exceed the L2 cache many times, so every
call starts cold. The bound of a pair that moves bytes is what a copy of as many bytes takes
in the same run, every input read once and every output written once. `run_eval.py` is the figure
of record; this is the quick loop.
"""

from __future__ import annotations

import argparse
import collections
import functools
import gc
import importlib.util
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Elements moved ("B": bytes), or flops ("F"), at the full size.
WORK = {
    "elementwise_add": ("B", 3 * 2**28),
    "batchnorm2d_inference": ("B", 2 * 2**30),
    "batchnorm2d_frozen_autograd": ("B", 5 * 2**28),
    "batchnorm2d_training": ("B", 2 * 2**30),
    "groupnorm": ("B", 2 * 112 * 2**24),
    "gemm_scale_batchnorm": ("F", 2 * 16384 * 4096 * 4096),
}
# Where two results that differ by rounding may lie apart: (rtol, atol).
CLOSE = {torch.float32: (1e-4, 1e-4), torch.float16: (1e-2, 1e-2), torch.bfloat16: (5e-2, 5e-2)}


def import_file(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(problem: str, solution: str, **sizes):
    reference = import_file(ROOT / "problems" / problem / "reference.py", f"ref_{problem}")
    for constant, value in sizes.items():
        setattr(reference, constant, value)
    if "out_features" in sizes:
        reference.scale_shape = (sizes["out_features"],)
    path = ROOT / "solutions" / problem / f"{solution}.py"
    new = import_file(path, f"new_{problem}_{solution}")
    return reference, new


def models(reference, new, dtype: torch.dtype = torch.float32):
    model = reference.Model(*reference.get_init_inputs()).to("cuda", dtype)
    candidate = new.ModelNew(*reference.get_init_inputs()).to("cuda", dtype)
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith("running_var"):
                t.uniform_(0.25, 1.25)
            elif t.is_floating_point():
                t.add_(torch.randn_like(t) * 0.5)
    candidate.load_state_dict(model.state_dict(), strict=True)
    return model, candidate


def walk_ms(call: Callable[[], object], calls: int, walks: int) -> float:
    """Return the median over `walks` of the time per call of `calls` calls one after the other."""
    for _ in range(calls + 1):  # until every output has its memory: an allocation would be timed
        call()
    times = []
    for _ in range(walks):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return statistics.median(times)


@functools.cache
def copy_rate() -> float:
    """Return the bytes per second, read and written, of a copy of 4 GiB."""
    x = torch.rand(2**30, device="cuda")
    y = torch.empty_like(x)
    ms = walk_ms(lambda: y.copy_(x), 5, 5)
    print(f"copy of 4 GiB: {ms:.3f} ms, {2 * 4 * 2**30 / ms / 1e9:.2f} TB/s", flush=True)
    return 2 * 4 * 2**30 / ms * 1e3


def nbytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def copies_of(inputs: list[torch.Tensor], written: int) -> list[list[torch.Tensor]]:
    """Return the inputs and as many copies as leave room for `written` bytes a copy, 2 to 24."""
    free = torch.cuda.mem_get_info()[0]
    count = min(24, max(2, int(0.7 * free) // (nbytes(inputs) + written)))
    rest = [
        [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        for _ in range(count - 1)
    ]
    return [inputs, *rest]


def runner(problem: str, model, sets: list[list[torch.Tensor]]) -> Callable[[], object]:
    """One call as the pair asks for it, with gradients where it has them, on the next inputs.

    The last outputs are kept, one for each set, so that a call cannot write where one before wrote.
    """
    inputs = itertools.cycle(sets)
    kept = collections.deque(maxlen=len(sets) - 1)
    gradient = problem == "batchnorm2d_frozen_autograd"

    def call():
        given = next(inputs)
        if gradient:
            x, g = given
            y = model(x)
            kept.append((y, torch.autograd.grad(y, [x, *model.parameters()], g)))
        else:
            with torch.no_grad():
                kept.append(model(*given))

    return call


def bench(problem: str, solution: str, dtype: torch.dtype, walks: int) -> None:
    unit, work = WORK[problem]
    work *= dtype.itemsize if unit == "B" else 1
    bound = work / copy_rate() * 1e3 if unit == "B" else None
    reference, new = pair(problem, solution)
    for training in [False, True] if problem == "gemm_scale_batchnorm" else [None]:
        model, candidate = models(reference, new, dtype)
        if training is not None:
            model.train(training), candidate.train(training)
        inputs = []
        with torch.device("cuda"):  # get_inputs draws there: a 7 GiB tensor takes minutes on a CPU
            drawn = reference.get_inputs()
        while drawn:
            x = drawn.pop(0).to(dtype)
            x.requires_grad_(problem == "batchnorm2d_frozen_autograd")
            inputs.append(x)
        with torch.no_grad():
            want, got = model(*inputs), candidate(*inputs)
            exact = model.double()(*(x.double() for x in inputs))
            own = max((w - e).abs().max() for w, e in zip(want, exact, strict=True)).item()
            error = max((w - e).abs().max() for w, e in zip(got, exact, strict=True)).item()
            rtol, atol = CLOSE[dtype]
            close = all(
                torch.allclose(w, g, rtol=rtol, atol=atol) for w, g in zip(want, got, strict=True)
            )
        written = nbytes(got) if isinstance(got, tuple) else nbytes([got])
        del want, got, exact
        model.to(dtype)
        if problem == "batchnorm2d_frozen_autograd":
            inputs.append(torch.randn_like(inputs[0]))
            written *= 2  # and the gradient of x
        torch.cuda.empty_cache()
        sets = copies_of(inputs, written)
        eager = walk_ms(runner(problem, model, sets), len(sets), walks)
        ours = walk_ms(runner(problem, candidate, sets), len(sets), walks)
        rate = work / ours * 1e3 / 1e12
        label = problem + ("" if training is None else ", training" if training else ", eval")
        share = "" if bound is None else f" {bound / ours:6.1%} of {bound:.3f} ms"
        print(
            f"{label:36} {solution:9} eager {eager:7.3f} ms  ours {ours:7.3f} ms "
            f"{eager / ours:5.2f}x  {rate:6.2f} T{unit}/s{share}  error {error:.2e} "
            f"eager's {own:.2e} allclose {close}",
            flush=True,
        )
        del inputs, sets, model, candidate, x
        gc.collect()
        torch.cuda.empty_cache()


def calls(problem: str, solution: str, dtype: torch.dtype) -> None:
    """Host time per call where the kernel itself takes next to none."""
    small = {
        "elementwise_add": {"batch_size": 1, "features": 128},
        "groupnorm": {"batch_size": 1, "features": 4, "num_groups": 2, "dim1": 8, "dim2": 8},
        "gemm_scale_batchnorm": {"batch_size": 16, "in_features": 16, "out_features": 16},
    }.get(problem, {"batch_size": 2, "features": 2, "dim1": 8, "dim2": 8})
    reference, new = pair(problem, solution, **small)
    model, candidate = models(reference, new, dtype)
    inputs = [x.detach().to("cuda", dtype) for x in reference.get_inputs()]
    times = {}
    with torch.no_grad():
        for _ in range(7):
            for name, call in (("eager", model), ("ours", candidate)):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(1000):
                    call(*inputs)
                torch.cuda.synchronize()
                times.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
    eager, ours = (statistics.median(times[name]) for name in ("eager", "ours"))
    print(
        f"{problem:36} {solution:9} eager {eager:6.2f} us a call  ours {ours:6.2f} us", flush=True
    )


def exercise(problem: str, solution: str) -> None:
    """Every kernel of a pair once: both layouts, full and ragged accesses, 16-bit and float32."""
    small = {
        "elementwise_add": [{"batch_size": 33, "features": 129}],
        "groupnorm": [
            {"batch_size": 2, "features": 4, "num_groups": 2, "dim1": 15, "dim2": 17},
            {"batch_size": 1, "features": 4, "num_groups": 2, "dim1": 131, "dim2": 129},
            {"batch_size": 40, "features": 4, "num_groups": 2, "dim1": 100, "dim2": 104},
        ],
        "gemm_scale_batchnorm": [
            {"batch_size": 130, "in_features": 20, "out_features": 36},
            {"batch_size": 67, "in_features": 21, "out_features": 131},
            {"batch_size": 200, "in_features": 130, "out_features": 260},
        ],
    }.get(
        problem,
        [
            {"batch_size": 3, "features": 8, "dim1": 15, "dim2": 17},
            {"batch_size": 1, "features": 2, "dim1": 131, "dim2": 129},
            {"batch_size": 40, "features": 3, "dim1": 64, "dim2": 128},
        ],
    )
    for sizes in small:
        reference, new = pair(problem, solution, **sizes)
        float32_only = problem == "gemm_scale_batchnorm" and solution != "solution"
        for dtype in (torch.float32,) if float32_only else (torch.float32, torch.float16):
            _, candidate = models(reference, new)
            candidate.to(dtype)
            inputs = [x.detach().to("cuda", dtype) for x in reference.get_inputs()]
            variants = [inputs]
            if inputs[0].dim() == 4:
                variants.append([x.contiguous(memory_format=torch.channels_last) for x in inputs])
            for variant in variants:
                for training in (True, False):
                    candidate.train(training)
                    if problem == "batchnorm2d_frozen_autograd":
                        x = variant[0].requires_grad_()
                        y = candidate(x)
                        torch.autograd.grad(y, [x, *candidate.parameters()], torch.ones_like(y))
                    else:
                        with torch.no_grad():
                            candidate(*variant)
                            if problem == "elementwise_add":
                                candidate(variant[0], variant[1][:1])
            torch.cuda.synchronize()
    print(f"{problem}/{solution}: exercised", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=list(WORK), metavar="problem[/solution]")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--exercise", action="store_true")
    parser.add_argument("--walks", type=int, default=7, help="over all inputs; the median counts")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability())
    )
    dtype = getattr(torch, options.dtype)
    for name in options.pairs:
        problem, _, solution = name.partition("/")
        solution = solution or "solution"
        torch.backends.cuda.matmul.allow_tf32 = solution == "tf32"  # for eager's sake
        if options.exercise:
            exercise(problem, solution)
        elif options.calls:
            calls(problem, solution, dtype)
        else:
            bench(problem, solution, dtype, options.walks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
