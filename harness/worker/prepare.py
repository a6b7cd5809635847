"""Requests before the first call: give up rights, map shared memory, load the module."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import ipc
from harness.ipc.draws import Draws
from harness.usercode import modules, numeric_flags
from harness.worker import calls, heap, launches, sandbox
from harness.worker.build import Builder
from harness.worker.model import load_module
from harness.worker.state import State

_SAID, _SAID_BUILDS = 4000, 20
"""Characters of a failed build's message and log, and how many builds, a worker reports."""


class Preparation:
    """Answers the requests that make a worker ready for calls.

    Args:
        state: shared by all requests.
        take_fds: returns the descriptors that came with the request.
        announce: tells the judge (event, extension name) around each compilation.
    """

    def __init__(
        self,
        state: State,
        take_fds: Callable[[], list[int]],
        announce: Callable[[str, str], None],
    ) -> None:
        self._state = state
        self._take_fds = take_fds
        self._announce = announce
        self._draws = Draws()

    def do_confine(self, request: dict[str, Any]) -> None:
        """Give up rights. The judge asks for this before any user code runs."""
        # The judge reads timed outputs through this descriptor. The process can open its own memory
        # only before it gives up rights.
        with contextlib.suppress(OSError):
            memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
            self._state.descriptors.append(memory)
        # Before the change of user: in some containers root may not renice another user's process.
        os.nice(request["niceness"])
        sandbox.confine(
            untrusted=request["untrusted"],
            uid=request["uid"],
            expose=request["expose"],
            max_data_bytes=request["max_data_bytes"],
        )
        for name in set(os.environ) - set(request["environment"]):
            del os.environ[name]
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        if request["threads"]:
            torch.set_num_threads(request["threads"])

    def do_pin(self, request: dict[str, Any]) -> None:
        """Keep every thread of this process on some cores, if the system allows it."""
        for task in Path("/proc/self/task").iterdir():
            _pin(int(task.name), request["cores"])

    def do_pin_main_thread(self, request: dict[str, Any]) -> None:
        """Keep the main thread, which is this one, on some cores, if the system allows it."""
        _pin(0, request["cores"])

    def do_arena(self, request: dict[str, Any]) -> None:
        """Map an arena that the judge allocated."""
        state, which = self._state, request["which"]
        if which == "stage":
            # Free the inputs over the old stage before the new one is mapped.
            state.batch.clear()
            gc.collect()
        arena: ipc.Arena
        if request["kind"] == "host":
            (fd,) = self._take_fds()
            arena = ipc.HostArena(fd, request["bytes"])
        else:
            from harness.ipc import device_arena

            old = state.arenas.get(which)
            if isinstance(old, device_arena.DeviceArena):
                old.close()
            handle = bytes.fromhex(request["handle"])
            arena = device_arena.DeviceArena.open(handle, request["bytes"], request["device"])
        state.arenas[which] = arena
        if which == "call mailbox" and state.device.type == "cuda":
            # Pinned: copies of unpinned memory do not run in the order of the stream.
            memory = arena.flat()
            code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), len(memory), 0)
            torch.cuda.check_error(code)

    def do_import_compiler(self, request: dict[str, Any]) -> None:
        """Import what torch.compile imports at its first use; touches no device."""
        import torch._dynamo
        import torch._inductor.compile_fx  # noqa: F401

    def do_start_profiler(self, request: dict[str, Any]) -> None:
        """Profile nothing: the first time takes seconds, and may slow later launches down."""
        with launches.durations(self._state.device):
            pass

    def do_draws(self, request: dict[str, Any]) -> None:
        """Map the large random tensors of the next constructor, so that it need not draw them."""
        (fd,) = self._take_fds()
        self._draws = Draws(fd, request["index"])

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import a file, construct its module, move it to the device."""
        state = self._state
        state.kind = request["device"].partition(":")[0]
        state.device = torch.device(request["device"] if state.kind == "cuda" else "cpu")
        if state.kind == "cuda":
            torch.cuda.set_device(state.device)
        numeric_flags.set_flags(request["numerics"])
        if state.kind == "cpu":
            heap.keep_freed_memory()
        state.builder = self._builder(request)
        state.builder.install()
        if request["guarded"]:
            self._start_runner(request)
        state.loaded = self._construct(request)
        state.inputs = calls.Inputs(state.device)
        state.batch = calls.Batch(state.device)
        # The collector need not look through all imported objects later: they stay.
        gc.collect()
        gc.freeze()
        return {
            "state": modules.describe_state(state.loaded),
            "built": state.builder.keys,
            "failed": {
                key: (message[:_SAID], log[-_SAID:])
                for key, (message, log) in list(state.builder.failed.items())[:_SAID_BUILDS]
            },
            "files": sorted(state.builder.files),
            "ships_cuda": state.builder.ships_cuda,
            "nvcc": state.builder.nvcc_notes,
            "numeric_flags": numeric_flags.flags(),
        }

    def _builder(self, request: dict[str, Any]) -> Builder:
        return Builder(
            device=self._state.kind,
            cache=Path(request["cache"]),
            build_folder=Path(request["build_folder"]),
            support=Path(request["support"]),
            solution=Path(request["file"]),
            announce=self._announce,
            nvcc=request["nvcc"],
            fast_headers=request["fast_headers"],
            failed={key: (message, log) for key, (message, log) in request["failed"].items()},
        )

    def _start_runner(self, request: dict[str, Any]) -> None:
        from harness.worker.cuda_on_cpu import Runtime

        self._state.runtime = Runtime(
            Path(request["support"]),
            answer_cuda=self._state.kind == "emulated",
            findings_path=Path(request["findings"]),
        )
        self._state.runtime.guard_allocations(True)

    def _construct(self, request: dict[str, Any]) -> torch.nn.Module:
        state, class_name = self._state, request["class_name"]
        init = state.decode(request["init"], request["table"])
        with state.user_code():
            with self._draws.replayed():
                module = load_module(
                    Path(request["file"]), class_name, init, request["seed"], request["overrides"]
                )
            self._draws.close()
            if request["to_device"]:
                module = module.to(state.device)
        if class_name == "Model":
            # Undo flags that the problem's file has set: the solution does not get them either.
            numeric_flags.set_flags(request["numerics"])
        if request["compile"] is None:
            return module
        compiled: Any = torch.compile(module, mode=request["compile"])
        assert isinstance(compiled, torch.nn.Module)
        return compiled

    def do_state(self, request: dict[str, Any]) -> None:
        """Copy values into the module's state, in place."""
        values = self._state.decode(request["values"], request["table"])
        with self._state.user_code():
            modules.write_state(self._state.module, values)


def _pin(thread: int, cores: list[int]) -> None:
    with contextlib.suppress(OSError):  # the judge checks the result
        os.sched_setaffinity(thread, set(cores))
