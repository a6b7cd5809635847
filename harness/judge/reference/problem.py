"""Holds the problem in the judge: the reference in its own precision, and its float64 copy.

Only this folder of the judge runs a problem's code. The reference in its own precision gives the
expected structure and state, and its own error. The float64 copy is the oracle.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.domain import HarnessError, Refusal, Status, UsageError
from harness.ipc.draws import Draws
from harness.judge.reference import state
from harness.usercode import modules, packages, pretend_cuda, source
from harness.usercode.modules import mapped, module_state, seed_everything

_LARGE_BYTES = 1 << 26
"""The construction of a smaller module takes less than a second."""
_SCALARS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


class InvalidReference(Refusal):
    """The problem's own code does not do what a reference must do."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.INVALID_REFERENCE, message)


def to_double(tensor: torch.Tensor) -> torch.Tensor:
    """Return floating tensors as float64, complex ones as complex128, others as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: torch's allocator has a type for it, CUDA only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)


@dataclass(slots=True)
class Outcome:
    """The results of one call of a module.

    Attributes:
        output: any nesting of tensors, in the module's precision.
        inputs: the arguments after the call.
        state: parameters and buffers after the call, by name.
        input_grads: one per input tensor, None where there is none; empty without gradients.
        state_grads: by parameter name.
        returns_parameter: whether a torch.nn.Parameter itself is among the outputs.
        aliases: [output index, input index] of outputs that share storage with an input.
    """

    output: Any
    inputs: Any
    state: dict[str, torch.Tensor]
    input_grads: list[torch.Tensor | None] = field(default_factory=list)
    state_grads: dict[str, torch.Tensor | None] = field(default_factory=dict)
    aliases: list[list[int]] = field(default_factory=list)
    returns_parameter: bool = False


class Problem:
    """The imported problem file, its module, and the oracle.

    Args:
        path: the problem's file.
        overrides: module-level constants to replace: a named or a reduced size.
        device: torch device that calls run on.
        seed: seed of the construction.
        on_code: called with True when the problem's code begins to run in this process, and with
            False when it has returned.

    Attributes:
        draws: large random tensors of the construction, for the oracle and the workers.
    """

    def __init__(
        self,
        path: Path,
        overrides: Mapping[str, Any],
        device: torch.device,
        seed: int,
        on_code: Callable[[bool], None] = lambda runs: None,
    ) -> None:
        self._on_code = on_code
        self._running = 0
        self.path = path
        self.overrides = dict(overrides)
        self.device = device
        with self._user_code("importing it"):
            self._namespace = source.execute(path, "judged_problem", overrides)
        for name in ("Model", "get_inputs"):
            if not hasattr(self._namespace, name):
                raise UsageError(
                    f"{path} defines no {name}. Next: a problem needs Model, get_inputs() and "
                    "get_init_inputs()."
                )
        self._draws_on_device = True
        self._construction_seed = seed
        self.draws = Draws(keep=True)
        with self._user_code("get_init_inputs()"):
            seed_everything(seed)
            get_init = getattr(self._namespace, "get_init_inputs", list)
            self.init_inputs = list(get_init())
        self.reference = self._constructed().to(device)

    def _constructed(self) -> torch.nn.Module:
        with self._user_code("constructing Model(*get_init_inputs())"), self.draws.replayed():
            seed_everything(self._construction_seed)
            module = self._namespace.Model(*copy.deepcopy(self.init_inputs))
        if not isinstance(module, torch.nn.Module):
            raise InvalidReference(f"{self.path}: Model is not a torch.nn.Module")
        return module

    @functools.cached_property
    def drawn_buffers(self) -> frozenset[str]:
        """Return the floating buffers with some zeros that another seed fills with other values.

        The others are constants, such as masks. Constructs the reference a second time if it has
        such buffers.
        """
        kinds = {d["name"]: d["kind"] for d in modules.describe_state(self.reference)}
        names = state.in_doubt(self.state(), kinds)
        if not names:
            return frozenset()
        with self._user_code("constructing Model(*get_init_inputs())"):
            seed_everything(self._construction_seed + 1)
            other = module_state(self._namespace.Model(*copy.deepcopy(self.init_inputs)))
        mine = self.state()
        return frozenset(
            n for n in names if not torch.equal(mine[n].cpu(), other[n].detach().cpu())
        )

    def move(self, device: torch.device) -> None:
        """Move the reference to the pair's device."""
        self.device = device
        self.reference = self.reference.to(device)

    def build_oracle(self) -> torch.nn.Module:
        """Return a float64 copy of the reference, on its device.

        Call this before the reference is called: the oracle is a freshly constructed module. Where
        it is safe, a large module is copied, which is faster than to construct and move it.
        """
        large = sum(t.numel() * t.element_size() for t in self.state().values()) >= _LARGE_BYTES
        copied = self._copied() if large else None
        if copied is None:
            copied = self._constructed().to(self.device)
        copied._apply(to_double)
        return copied

    def _copied(self) -> torch.nn.Module | None:
        """Return a copy of the reference; None where the copy might share data with the original.

        deepcopy does not copy a function. A function that holds the module in a closure would still
        use the original's weights. So only modules with plain values are copied.
        """
        if not all(_is_plain(v) for m in self.reference.modules() for v in vars(m).values()):
            return None
        try:
            return copy.deepcopy(self.reference)
        except (RuntimeError, TypeError):  # a tensor that is no leaf, or an object that refuses
            return None

    def forward_names(self) -> list[str]:
        """Return the names of forward's positional arguments; SETTINGS['domain'] refers to them."""
        try:
            parameters = inspect.signature(self.reference.forward).parameters.values()
        except (TypeError, ValueError):
            return []
        return [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]

    def inputs(self, seed: int) -> list[Any]:
        """Return nominal inputs, drawn from get_inputs() under a seed, on the device.

        For a GPU they are drawn there (torch.device as default): gigabytes of random numbers take
        too long on the CPU. Where get_inputs() fails that way, they are drawn on the CPU.
        """
        seed_everything(seed)
        drawn: Any = None
        if self.device.type == "cuda" and self._draws_on_device:
            try:
                with self.running(), self.device:
                    drawn = self._namespace.get_inputs()
            except Exception as error:
                # The same seed gives other numbers on the CPU. If memory runs out, drawing there
                # would change the inputs of a call.
                if is_out_of_memory(error):
                    raise torch.OutOfMemoryError(str(error)) from error
                self._draws_on_device = False
        if drawn is None:
            with self._user_code("get_inputs()"):
                seed_everything(seed)
                drawn = self._namespace.get_inputs()
        if not isinstance(drawn, (list, tuple)):
            raise InvalidReference(
                f"{self.path}: get_inputs() returned a {type(drawn).__name__}, not a list"
            )
        return [mapped(v, lambda t: t.detach().to(self.device)) for v in drawn]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the reference's parameters and buffers by name, every alias under its own name."""
        return module_state(self.reference)

    def call(
        self,
        module: torch.nn.Module,
        mode: str,
        inputs: list[Any],
        rng: int,
        output_grads: modules.OutputGrads,
        *,
        private: bool = False,
    ) -> Outcome:
        """Call a module once on private copies of the inputs.

        Args:
            module: the reference or its float64 copy.
            mode: see modules.call, as for rng and output_grads.
            rng: seed of all generators before the call.
            output_grads: None calls without gradients.
            inputs: left unchanged, unless private.
            private: use the inputs without a copy and do not return them; that saves gigabytes.

        Raises:
            InvalidReference: the problem's code raised.
        """
        own = inputs
        if not private:
            own = [mapped(v, lambda t: t.detach().clone()) for v in inputs]
        with self._user_code(f"calling Model in mode {mode}"):
            output, gradients = modules.call(module, mode, own, rng, output_grads)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # its kernels are its code, too
        odd = next((t for t in modules.tensors_of(output) if t.layout is not torch.strided), None)
        if odd is not None:
            raise InvalidReference(
                f"{self.path}: Model returns a tensor of layout {odd.layout}; only dense ones are "
                "compared. Next: return .to_dense()"
            )
        gradients = gradients or modules.Gradients()
        if gradients.missing.startswith("backward raised"):
            raise InvalidReference(f"{self.path}: in mode {mode}, {gradients.missing}")
        return Outcome(
            output=mapped(output, lambda t: t.detach()),
            inputs=[] if private else own,
            state={n: t.detach().clone() for n, t in module_state(module).items()},
            input_grads=gradients.inputs,
            state_grads=gradients.state,
            aliases=modules.aliases(output, own),
            returns_parameter=any(
                isinstance(t, torch.nn.Parameter) for t in modules.tensors_of(output)
            ),
        )

    def judged(self, what: str, run: Callable[[], Any]) -> Any:
        """Run a function that calls the problem's code, and return its result.

        Args:
            what: names it in errors.
            run: the function.

        Raises:
            InvalidReference: the problem's code raised.
        """
        with self._user_code(what):
            return run()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Tell that the problem's code runs. Only the outermost of several blocks tells it."""
        self._running += 1
        if self._running == 1:
            self._on_code(True)
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._on_code(False)

    @contextlib.contextmanager
    def _user_code(self, what: str) -> Iterator[None]:
        try:
            if self.device.type == "cuda":
                with self.running():
                    yield
            else:
                with self.running(), pretend_cuda.pretend(answer_cuda=False):
                    yield
        except (UsageError, HarnessError, InvalidReference):
            raise
        except Exception as error:  # the problem's code may raise anything: an edge
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(str(error)) from error
            if needed := packages.missing(error):
                raise Refusal(Status.SKIPPED, f"{self.path}: {needed}") from error
            raise InvalidReference(
                f"{self.path}: {what} raised {type(error).__name__}: {str(error)[:500]}"
            ) from error
        except SystemExit as error:
            raise InvalidReference(f"{self.path}: {what} called sys.exit") from error


def _is_plain(value: Any) -> bool:
    """Return whether a value and its deepcopy share nothing."""
    if isinstance(value, dict):
        return all(_is_plain(v) for v in (*value.keys(), *value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, types.FunctionType):
        # deepcopy does not copy a function, nor the objects that it holds.
        held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return not value.__closure__ and all(isinstance(h, _SCALARS) for h in held)
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, (types.ModuleType, type, type(None)))
    return isinstance(value, (torch.Tensor, torch.nn.Module, type, *_SCALARS))
