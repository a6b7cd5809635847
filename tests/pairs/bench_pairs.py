"""Check and time the shipped pairs on a GPU, for the people who tune them.

    python tests/pairs/bench_pairs.py                  full sizes: error against float64, times
    python tests/pairs/bench_pairs.py --exercise       every kernel once at small sizes, untimed:
                                                       the process to put under compute-sanitizer
    python tests/pairs/bench_pairs.py groupnorm ...    some of them

Times are medians of CUDA events around single calls. Tensors exceed the L2 cache many times, so
every call starts cold. `run_eval.py` is the figure of record; this is the quick loop.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# Bytes moved, or flops, at the full size; TB/s and TFLOP/s are printed from them.
WORK = {
    "elementwise_add": ("B", 3 * 4 * 2**28),
    "batchnorm2d_inference": ("B", 2 * 4 * 2**30),
    "batchnorm2d_frozen_autograd": ("B", 5 * 4 * 2**28),
    "batchnorm2d_training": ("B", 2 * 4 * 2**30),
    "groupnorm": ("B", 2 * 4 * 112 * 2**24),
    "gemm_scale_batchnorm": ("F", 2 * 16384 * 4096 * 4096),
}


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


def models(reference, new):
    model = reference.Model(*reference.get_init_inputs()).cuda()
    candidate = new.ModelNew(*reference.get_init_inputs()).cuda()
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith("running_var"):
                t.uniform_(0.25, 1.25)
            elif t.is_floating_point():
                t.add_(torch.randn_like(t) * 0.5)
    candidate.load_state_dict(model.state_dict(), strict=True)
    return model, candidate


def median_ms(call: Callable[[], object], repeats: int) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def runner(problem: str, model, inputs) -> Callable[[], object]:
    """One call as the pair asks for it: with gradients where it has them."""
    if problem == "batchnorm2d_frozen_autograd":
        g = torch.randn_like(inputs[0])

        def call():
            y = model(*inputs)
            return torch.autograd.grad(y, [inputs[0], *model.parameters()], g)

        return call

    def forward():
        with torch.no_grad():
            return model(*inputs)

    return forward


def bench(problem: str, solution: str, repeats: int) -> None:
    reference, new = pair(problem, solution)
    for training in [False, True] if problem == "gemm_scale_batchnorm" else [None]:
        model, candidate = models(reference, new)
        if training is not None:
            model.train(training), candidate.train(training)
        inputs = []
        with torch.device("cuda"):  # get_inputs draws there: a 7 GiB tensor takes minutes on a CPU
            drawn = reference.get_inputs()
        for x in drawn:
            x.requires_grad_(problem == "batchnorm2d_frozen_autograd")
            inputs.append(x)
        with torch.no_grad():
            want, got = model(*inputs), candidate(*inputs)
            exact = model.double()(*(x.double() for x in inputs))
            own = max((w - e).abs().max() for w, e in zip(want, exact, strict=True)).item()
            error = max((w - e).abs().max() for w, e in zip(got, exact, strict=True)).item()
            close = all(
                torch.allclose(w, g, rtol=1e-4, atol=1e-4) for w, g in zip(want, got, strict=True)
            )
        del want, got, exact
        model.float()
        eager = median_ms(runner(problem, model, inputs), repeats)
        ours = median_ms(runner(problem, candidate, inputs), repeats)
        unit, work = WORK[problem]
        rate = work / ours * 1e3 / 1e12
        label = problem + ("" if training is None else ", training" if training else ", eval")
        print(
            f"{label:36} {solution:9} eager {eager:7.3f} ms  ours {ours:7.3f} ms "
            f"{eager / ours:5.2f}x  {rate:6.2f} T{unit}/s  error {error:.2e} eager's {own:.2e} "
            f"allclose {close}",
            flush=True,
        )
        del inputs, model, candidate
        gc.collect()
        torch.cuda.empty_cache()


def exercise(problem: str, solution: str) -> None:
    """Every kernel of a pair once: both layouts, full and ragged accesses, 16-bit and float32."""
    small = {
        "elementwise_add": [{"batch_size": 33, "features": 129}],
        "groupnorm": [
            {"batch_size": 2, "features": 4, "num_groups": 2, "dim1": 15, "dim2": 17},
            {"batch_size": 1, "features": 4, "num_groups": 2, "dim1": 131, "dim2": 129},
        ],
        "gemm_scale_batchnorm": [
            {"batch_size": 130, "in_features": 20, "out_features": 36},
            {"batch_size": 67, "in_features": 21, "out_features": 131},
        ],
    }.get(
        problem,
        [
            {"batch_size": 3, "features": 8, "dim1": 15, "dim2": 17},
            {"batch_size": 1, "features": 2, "dim1": 131, "dim2": 129},
        ],
    )
    for sizes in small:
        reference, new = pair(problem, solution, **sizes)
        for dtype in (torch.float32, torch.float16):
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
    print(f"{problem}: exercised", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=list(WORK))
    parser.add_argument("--solution", default="solution")
    parser.add_argument("--exercise", action="store_true")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability())
    )
    for problem in options.problems:
        if options.exercise:
            exercise(problem, options.solution)
        else:
            bench(problem, options.solution, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
