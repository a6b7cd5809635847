"""Lets code that asks for a GPU run on CPU tensors: ``.cuda()``, ``device="cuda"``, torch.cuda.

KernelBench problems call ``.cuda()`` in ``get_inputs``, and solutions ask for ``x.is_cuda``. Under
``pretend`` such code runs on a machine without CUDA. A TorchFunctionMode replaces device arguments.
A mode does not see functions of ``torch.cuda``, ``Module.cuda`` and the attributes ``is_cuda`` and
``device``; these are patched for the duration.
"""

from __future__ import annotations

import contextlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, int):  # the index of a GPU
        return not isinstance(device, bool)
    return isinstance(device, str) and (device == "cuda" or device.startswith("cuda:"))


def _to_cpu(value: Any) -> Any:
    return torch.device("cpu") if _is_cuda(value) else value


class _Mode(TorchFunctionMode):
    """Replaces CUDA by the CPU in device arguments."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "cuda" and func is torch.Tensor.cuda:
            return args[0]  # the tensor is where it should be
        if name == "pin_memory":
            return args[0]
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if "device" in kwargs:
            kwargs["device"] = _to_cpu(kwargs["device"])
        elif name in _DEVICE_FIRST:
            place = _DEVICE_FIRST[name]
            args = tuple(_to_cpu(a) if i == place or _names(a) else a for i, a in enumerate(args))
        elif name in _DEVICE_BY_POSITION:
            args = tuple(_to_cpu(a) if _names(a) else a for a in args)
        if func is torch.Tensor.is_pinned:
            return False
        return func(*args, **kwargs)


def _names(value: Any) -> bool:
    """Return whether a positional argument can be nothing but a device."""
    return isinstance(value, (str, torch.device))


# Where a number is a device: in Tensor.to, and in what Module.to reads its arguments with.
_DEVICE_FIRST = {"to": 1, "_parse_to": 0}
_DEVICE_BY_POSITION = {"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"}


class _Generator(torch.Generator):
    """A torch.Generator that replaces "cuda" by the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        make: Any = super().__new__  # the stub does not know its argument
        made: _Generator = make(cls, device=_to_cpu(device))
        return made


class _Stream:
    """A stream on which all work is done at once.

    By its handle the CPU runner recognises a launch on the default stream.
    """

    cuda_stream = 0x20
    device_index = 0
    priority = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self.device = torch.device("cpu")

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event()
        event.record()
        return event

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: object) -> None: ...


class _CurrentStream(_Stream):
    """The stream that is current."""

    cuda_stream = 0x10


class _DefaultStream(_Stream):
    """The default stream, also while another one is current."""

    cuda_stream = 0


class _Event:
    """An event that reads the host's clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self._at = 0.0

    def record(self, stream: Any = None) -> None:
        self._at = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return (other._at - self._at) * 1e3


@contextlib.contextmanager
def _nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


def _properties(device: Any = None) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name="cuda_on_cpu",
        major=8,
        minor=0,
        total_memory=16 << 30,
        multi_processor_count=4,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=163 * 1024,
        shared_memory_per_multiprocessor=164 * 1024,
        L2_cache_size=40 << 20,
        is_integrated=0,
        gcnArchName="",
    )


def _constant(value: Any) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        return value

    return answer


def _cuda_functions(answer_cuda: bool) -> dict[str, Any]:
    """Return the replacements of the functions of torch.cuda."""
    functions: dict[str, Any] = {
        "is_available": _constant(answer_cuda),
        "device_count": _constant(int(answer_cuda)),
        "current_device": _constant(0),
        "synchronize": _constant(None),
        "set_device": _constant(None),
        "init": _constant(None),
        "is_initialized": _constant(answer_cuda),
        "empty_cache": _constant(None),
        "ipc_collect": _constant(None),
        "reset_peak_memory_stats": _constant(None),
        "reset_max_memory_allocated": _constant(None),
        "memory_allocated": _constant(0),
        "max_memory_allocated": _constant(0),
        "memory_reserved": _constant(0),
        "max_memory_reserved": _constant(0),
        "mem_get_info": _constant((12 << 30, 16 << 30)),
        "get_device_capability": _constant((8, 0)),
        "get_device_name": _constant("cuda_on_cpu"),
        "get_device_properties": _properties,
        "get_arch_list": _constant(["sm_80"]),
        "is_bf16_supported": _constant(True),
        "current_stream": _CurrentStream,
        "default_stream": _DefaultStream,
        "Stream": _Stream,
        "ExternalStream": _Stream,
        "Event": _Event,
        "stream": _nothing,
        "device": _nothing,
        "device_of": _nothing,
        "set_stream": _constant(None),
    }
    return {k: v for k, v in functions.items() if hasattr(torch.cuda, k)}


def _seed(seed: int) -> None:
    """torch.cuda.manual_seed: the CPU's generator has been seeded by its own function."""


def _module_cuda(module: torch.nn.Module, device: Any = None) -> torch.nn.Module:
    return module


def _autocast_init(real: Callable[..., None]) -> Callable[..., None]:
    """Return an autocast that uses the CPU's for "cuda", with CUDA's default dtype."""

    def init(self: Any, device_type: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        real(self, device_type, dtype, *args, **kwargs)

    return init


_EXCHANGED = {
    "CUDA": "CPU",
    "CPU": "CUDA",
    "AutogradCUDA": "AutogradCPU",
    "AutogradCPU": "AutogradCUDA",
}
_TORCHS_NAMESPACES = {name.split("::")[0] for name in torch._C._dispatch_get_all_op_names()}


def _library_init(real: Callable[..., None]) -> Callable[..., None]:
    """A library of the user's for CUDA serves the tensors that claim to be there."""

    def init(self: Any, ns: str, kind: str, dispatch_key: str = "") -> None:
        if ns not in _TORCHS_NAMESPACES:
            dispatch_key = _EXCHANGED.get(dispatch_key, dispatch_key)
        real(self, ns, kind, dispatch_key)

    return init


def _library_impl(real: Callable[..., Any]) -> Callable[..., Any]:
    """What custom_op, register_kernel and torch.library.impl come down to."""

    def impl(self: Any, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> Any:
        if self.ns not in _TORCHS_NAMESPACES:
            dispatch_key = _EXCHANGED.get(dispatch_key, dispatch_key)
        return real(self, op_name, fn, dispatch_key, **options)

    return impl


class _DefaultDevice:
    """torch's default device: one that is sent to the CPU changes nothing.

    torch would keep a mode of its own for it, beyond the end of ours.
    """

    def __init__(self, answer_cuda: bool) -> None:
        self._answer_cuda = answer_cuda
        self._set, self._get = torch.set_default_device, torch.get_default_device

    def set(self, device: Any) -> None:
        if device is None or _is_cuda(device) or torch.device(device).type == "cpu":
            global _default_is_cuda
            _default_is_cuda = _is_cuda(device)
        else:
            self._set(device)

    def get(self) -> torch.device:
        if _default_is_cuda and self._answer_cuda:
            return torch.device("cuda", 0)
        return self._get()


_default_is_cuda = False
"""As user code left it: a default stays from one call to the next."""


class _Answering:
    """A descriptor that replaces an attribute of a tensor."""

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        self._answer = answer

    def __get__(self, tensor: torch.Tensor | None, owner: type) -> Any:
        return self if tensor is None else self._answer(tensor)


_TENSOR_BASE: Any = torch._C.TensorBase
_REAL_DEVICE = _TENSOR_BASE.device


def _real_device(tensor: torch.Tensor) -> torch.device:
    # A mode sees reads of attributes, too. Without this it would read the patched one again.
    with torch._C.DisableTorchFunction():
        device: torch.device = _REAL_DEVICE.__get__(tensor, type(tensor))
    return device


def _claimed_device(tensor: torch.Tensor) -> torch.device:
    device = _real_device(tensor)
    return torch.device("cuda", 0) if device.type == "cpu" else device


@contextlib.contextmanager
def pretend(*, answer_cuda: bool) -> Iterator[None]:
    """Run code that asks for CUDA on CPU tensors, in this thread and for this duration.

    Args:
        answer_cuda: True: ``torch.cuda.is_available()`` and ``x.is_cuda`` are True, and
            ``x.device`` is ``cuda:0`` (device ``emulated``). False: they tell the truth, and only
            explicit requests (``.cuda()``, ``device="cuda"``) are replaced by the CPU.

    The code runs on the CPU also on a machine with a GPU.
    """
    with contextlib.ExitStack() as stack:
        for name, function in _cuda_functions(answer_cuda).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for name in ("manual_seed", "manual_seed_all"):
            stack.enter_context(mock.patch.object(torch.cuda, name, _seed))
        stack.enter_context(mock.patch.object(torch.nn.Module, "cuda", _module_cuda))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        autocast = _autocast_init(torch.autocast.__init__)
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
        default = _DefaultDevice(answer_cuda)
        stack.enter_context(mock.patch.object(torch, "set_default_device", default.set))
        stack.enter_context(mock.patch.object(torch, "get_default_device", default.get))
        if answer_cuda:
            library = torch.library.Library
            for name, change in (("__init__", _library_init), ("impl", _library_impl)):
                patched = change(getattr(library, name))
                stack.enter_context(mock.patch.object(library, name, patched))
            answers: dict[str, Callable[[torch.Tensor], Any]] = {
                "is_cuda": lambda t: _real_device(t).type == "cpu",
                "is_cpu": lambda t: False,
                "device": _claimed_device,
                "get_device": lambda t: lambda: 0,
            }
            for name, answer in answers.items():
                stack.enter_context(
                    mock.patch.object(torch.Tensor, name, _Answering(answer), create=True)
                )
        stack.enter_context(_Mode())
        yield
