"""Says what a mismatch looks like and what to do next, and writes a script that reproduces it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.domain import Pair, Status
from harness.judge.check.structure import Mismatch
from harness.judge.reference import similarity
from harness.usercode.modules import mapped, nbytes, tensors_of

_MAX_MESSAGE = 1500
_NEXT = {
    Status.BUILD_FAILED: "fix that line; the log has the compiler's whole output",
    Status.LOAD_FAILED: "import the file and construct ModelNew(*get_init_inputs()) by hand",
    Status.NO_KERNEL_LAUNCHED: "remove the fallback so that the real error shows",
    Status.STATE_MISMATCHED: "give parameters and buffers the reference's names, shapes and kinds",
    Status.WRONG_STRUCTURE: "return plain tensors in the reference's nesting",
    Status.WRONG_SHAPE: "return the reference's shape",
    Status.WRONG_DTYPE: "return the reference's dtype",
    Status.NOT_FINITE: "look for unwritten outputs, divisions by zero and overflow",
    Status.WRONG_VALUES: "run the reproducer",
    Status.PRECISION_LOST: (
        "compute in the reference's precision, or declare another under SETTINGS['solutions']"
    ),
    Status.WRONG_GRADIENTS: "run the reproducer; torch.autograd.gradcheck names the term",
    Status.WRONG_STATE: "update buffers in place as the reference does, and nothing else",
    Status.INPUT_MUTATED: "write into memory of your own",
    Status.NONDETERMINISTIC: "look for races and for random numbers outside torch's generator",
    Status.MEMORY_FAULT: "mend the access at that line",
    Status.CRASHED: "the log has the worker's stderr",
    Status.OUT_OF_MEMORY: "check allocations in forward; --size small needs less",
    Status.TIMED_OUT: "look for an endless loop; --timeout raises the limit",
    Status.TAMPERED: "leave the harness's process, clock and wire alone",
    Status.INVALID_REFERENCE: "run the reference by hand on its own inputs",
    Status.WEAK_PROBLEM: "use inputs and sizes on which the output depends on the computation",
    Status.SKIPPED: "run it where that is available",
    Status.HARNESS_ERROR: "report this with the log",
}


_NEXT_ON_GPU = {
    Status.MEMORY_FAULT: "--device emulated names kernel, line and thread",
    Status.CRASHED: "--device emulated checks every access; the log has the worker's stderr",
}


def advised(status: Status, message: str, device: str) -> str:
    """Return the message in one line, with what to do next unless it says so itself."""
    steps = _NEXT | _NEXT_ON_GPU if device.startswith("cuda") else _NEXT
    advice = None if "Next: " in message else steps.get(status)
    first = " ".join(message.split()).rstrip(".")
    if len(first) > _MAX_MESSAGE:
        first = first[:_MAX_MESSAGE] + " ..."
    return f"{first}. Next: {advice}." if advice else first


def pattern(mismatch: Mismatch, inputs: Any) -> str:
    """Return what the wrong elements have in common; empty if nothing is known.

    Args:
        mismatch: with the boolean tensor of wrong elements, where it was kept.
        inputs: the call's arguments, to relate wrong elements to the input's sign.
    """
    wrong = mismatch.wrong
    if wrong is None or wrong.numel() < 2:
        return ""
    count = int(wrong.sum())
    if count == 0:
        return ""
    share = f"{count} of {wrong.numel()} elements"
    if count == wrong.numel():
        return f"all {count} elements are wrong"
    for x in tensors_of(inputs):
        if x.shape == wrong.shape and x.is_floating_point():
            negative = (x < 0).cpu()
            if bool(negative.any()) and bool((~negative).any()):
                if bool((wrong <= negative).all()):
                    return f"{share} are wrong, all of them where the input is negative"
                if bool((wrong <= ~negative).all()):
                    return f"{share} are wrong, all of them where the input is not negative"
    found = []
    for dim in range(wrong.dim()):
        size = wrong.shape[dim]
        if size < 2:
            continue
        others = [d for d in range(wrong.dim()) if d != dim]
        hit = wrong.any(dim=others) if others else wrong
        indices = torch.nonzero(hit).flatten().tolist()
        if len(indices) == size:
            continue
        found.append(_where(indices, size, dim))
    return f"{share} are wrong" + (", " + " and ".join(found) if found else "")


def _where(indices: list[int], size: int, dim: int) -> str:
    contiguous = indices[-1] - indices[0] + 1 == len(indices)
    if dim == 0 and contiguous and indices[0] == 1 and indices[-1] == size - 1:
        return "only in samples after the first"
    if contiguous and indices[-1] == size - 1:
        return f"only from index {indices[0]} to the end of dim {dim} (the last tile?)"
    if contiguous:
        return f"only at indices {indices[0]} to {indices[-1]} of dim {dim}"
    steps = {b - a for a, b in itertools.pairwise(indices)}
    if len(steps) == 1:
        return f"only at every {steps.pop()}th index of dim {dim} from {indices[0]}"
    return f"only at {len(indices)} of {size} indices of dim {dim}"


_SCRIPT = '''"""Shows one mismatch without the harness; needs torch and the solution only."""

import importlib.util
import pathlib

import torch

HERE = pathlib.Path(__file__).parent
DEVICE = {device!r}
data = torch.load(HERE / "data.pt", weights_only=True)
spec = importlib.util.spec_from_file_location("solution", {solution!r})
solution = importlib.util.module_from_spec(spec)
spec.loader.exec_module(solution)

model = solution.ModelNew(*data["init"]).to(DEVICE)
state = {{**dict(model.named_parameters()), **dict(model.named_buffers())}}
with torch.no_grad():
    for name, value in data["state"].items():
        state[name].copy_(value)
mode = {mode!r}
if mode != "forward":
    model.train(mode == "train")
torch.manual_seed({rng})


def to_device(value):
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, (list, tuple)):
        return type(value)(map(to_device, value))
    return value


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value.detach().cpu()
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


with torch.set_grad_enabled(mode == "train"):
    output = model(*to_device(data["inputs"]))
print({message!r})
for i, (got, expected) in enumerate(zip(tensors(output), tensors(data["expected"]))):
    print("output", i, "got", tuple(got.shape), got.dtype, "expected", tuple(expected.shape))
    if got.shape == expected.shape:
        diff = (got.double() - expected.double()).abs()
        print("  max |diff|", float(diff.max()) if diff.numel() else 0.0)
'''


def write_reproducer(
    folder: Path,
    pair: Pair,
    *,
    device: str,
    mode: str,
    rng: int,
    init: Any,
    state: Mapping[str, torch.Tensor],
    inputs: Any,
    expected: Any,
    message: str,
    limit_bytes: int = 256 << 20,
) -> str | None:
    """Write ``reproduce.py`` and its data; return the script's path.

    None if the tensors are too large to be worth writing, or of a kind that torch.load does not
    read safely. The replay command still reproduces such a case.
    """
    held = [*tensors_of(inputs), *tensors_of(expected), *state.values()]
    if sum(map(nbytes, held)) > limit_bytes or not _plain(init):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "init": init,
        "state": {n: t.detach().cpu() for n, t in state.items()},
        "inputs": _on_cpu(inputs),
        "expected": _on_cpu(expected),
    }
    torch.save(data, folder / "data.pt")
    target = "cuda" if device.startswith("cuda") or device == "emulated" else "cpu"
    script = folder / "reproduce.py"
    script.write_text(
        _SCRIPT.format(
            device=target, solution=str(pair.solution), mode=mode, rng=rng, message=message
        )
    )
    (folder / "about.json").write_text(json.dumps({"pair": pair.name, "device": device}))
    return str(script)


def _on_cpu(value: Any) -> Any:
    """Return a value with its tensors on the CPU, and named tuples as tuples."""
    return similarity.plain(mapped(value, lambda t: t.detach().cpu()))


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor, torch.dtype))
