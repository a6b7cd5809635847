"""A worker process: ``python -m harness.worker FD``. Loads one module and does what it is told.

The same code serves the reference and the candidate; they differ in what they load. The worker
holds no expected value and no seed of the judge's, and decides nothing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from harness import ipc
from harness.domain import BuildFailed, Unsupported, UsageError, to_json
from harness.ipc import mailbox
from harness.ipc.draws import Draws
from harness.usercode import modules, numeric_flags, packages, pretend_cuda
from harness.worker import calls, heap, launches, sandbox
from harness.worker.build import Builder
from harness.worker.model import LoadError, load_module

_LAG_CYCLES = 4_000_000
"""Some two milliseconds of a GPU's clock."""
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
)

_SAID, _SAID_BUILDS = 4000, 20
"""Characters of a failed build's message and log, and how many builds, a worker reports."""


class Worker:
    """Answers the judge's requests, one at a time, until the wire closes."""

    def __init__(self, channel: ipc.Channel) -> None:
        self._channel = channel
        self._send_lock = threading.Lock()
        self._inbox: ipc.Arena | None = None
        self._outbox: ipc.Arena | None = None
        self._module: torch.nn.Module | None = None
        self._device = torch.device("cpu")
        self._kind = "cpu"
        self._builder: Builder | None = None
        self._runtime: Any = None
        self._last: tuple[Any, dict[str, Any]] | None = None
        self._previous_output: Any = None
        self._output_bytes: list[int] = []
        self._input_bytes: list[int] = []
        self._other_stream: torch.cuda.Stream | None = None
        self._mailbox: mailbox.BatchMailbox | None = None
        self._shared: dict[str, ipc.Arena] = {}
        self._sent_along: list[int] = []
        self._draws = Draws()

    def serve(self) -> None:
        """Answer requests until the judge closes the wire."""
        while True:
            try:
                request = self._channel.receive()
            except ipc.WireClosed:
                return
            reply: dict[str, Any] = {"id": request["id"], "ok": True}
            try:
                handler = getattr(self, "do_" + request["do"])
                with self._stream(other=request.get("other_stream") is True):
                    reply.update(handler(request) or {})
                # The judge may write to the arenas again as soon as it has the answer.
                calls.synchronize(self._device)
            except BaseException as error:  # noqa: BLE001 - everything becomes an answer
                with contextlib.suppress(RuntimeError):  # it is said already
                    calls.synchronize(self._device)
                reply = {"id": request["id"], "ok": False, "error": describe(error)}
                traceback.print_exc()
                if self._builder is not None:
                    reply["error"]["built"] = self._builder.keys
            with contextlib.suppress(AttributeError, ValueError, OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            reply.update(self._build_facts())
            reply.update(self._runner_facts())
            self._send(reply)

    def _send(self, message: dict[str, Any]) -> None:
        with self._send_lock:
            self._channel.send(message, self._sent_along)
            while self._sent_along:
                os.close(self._sent_along.pop())

    def _announce(self, event: str, name: str) -> None:
        self._send({"event": event, "name": name})

    def _build_facts(self) -> dict[str, Any]:
        """Return what did not build so far: a solution may build in any call, and hide it."""
        if self._builder is None or not (self._builder.failures or self._builder.unsupported):
            return {}
        return {
            "build_failures": [str(f) for f in self._builder.failures[:5]],
            "unsupported": [str(u) for u in self._builder.unsupported[:5]],
        }

    def _runner_facts(self) -> dict[str, Any]:
        if self._runtime is None:
            return {}
        return {
            "findings": [to_json(f) for f in self._runtime.take_findings()][:20],
            "launches": self._runtime.launches,
            "launches_without_stream": self._runtime.launches_without_stream,
        }

    # --- requests -------------------------------------------------------------------------------

    def do_confine(self, request: dict[str, Any]) -> None:
        """Give up rights; must come before any user code."""
        # The judge reads timed outputs through it. A process may open its own until it hides.
        with contextlib.suppress(OSError):
            self._sent_along.append(os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC))
        # Before a change of user: root may not renice another user's process in every container.
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
        """Keep every thread of this process on some cores, as far as the system lets it."""
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # the judge looks at what came of it
                os.sched_setaffinity(int(task.name), set(request["cores"]))

    def do_pin_main_thread(self, request: dict[str, Any]) -> None:
        """Keep the main thread, which is this one, on some cores, as far as the system lets it."""
        with contextlib.suppress(OSError):  # the judge looks at what came of it
            os.sched_setaffinity(0, set(request["cores"]))

    def do_arena(self, request: dict[str, Any]) -> None:
        """Map an arena that the judge allocated."""
        arena: ipc.Arena
        which = request["which"]
        if which == "stage":
            # Unmapped before its successor is mapped; what lay in it goes with it.
            self._batch.clear()
            gc.collect()
        if request["kind"] == "host":
            (fd,) = self._channel.take_fds()
            arena = ipc.HostArena(fd, request["bytes"])
        else:
            from harness.ipc import device_arena

            old = {"in": self._inbox, "out": self._outbox}.get(which, self._shared.get(which))
            if isinstance(old, device_arena.DeviceArena):
                old.close()
            arena = device_arena.DeviceArena.open(
                bytes.fromhex(request["handle"]), request["bytes"], request["device"]
            )
        if which == "in":
            self._inbox = arena
        elif which == "out":
            self._outbox = arena
        elif which == "mailbox":
            assert isinstance(arena, ipc.HostArena)
            self._mailbox = mailbox.BatchMailbox(arena)
        else:
            self._shared[which] = arena
            if which == "call mailbox" and self._device.type == "cuda":
                # Pinned, or copies to and from it would not wait their turn in the stream.
                memory = arena.flat()
                code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), len(memory), 0)
                torch.cuda.check_error(code)

    def do_import_compiler(self, request: dict[str, Any]) -> None:
        """Import what torch.compile imports at its first use; touches no device."""
        import torch._dynamo
        import torch._inductor.compile_fx  # noqa: F401

    def do_start_profiler(self, request: dict[str, Any]) -> None:
        """Profile nothing: the first time takes seconds, and may leave its mark on launches."""
        with launches.durations(self._device):
            pass

    def do_draws(self, request: dict[str, Any]) -> None:
        """Take the large random tensors that the next constructor would draw."""
        (fd,) = self._channel.take_fds()
        self._draws = Draws(fd, request["index"])

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import a file, construct its module, move it to the device."""
        self._kind = request["device"].partition(":")[0]
        on_gpu = self._kind == "cuda"
        self._device = torch.device(request["device"] if on_gpu else "cpu")
        if on_gpu:
            torch.cuda.set_device(self._device)
        numeric_flags.set_flags(request["numerics"])
        if self._kind == "cpu":
            heap.keep_freed_memory()
        path = Path(request["file"])
        init = self._decode(request["init"], request["table"])
        self._builder = Builder(
            device=self._kind,
            cache=Path(request["cache"]),
            build_folder=Path(request["build_folder"]),
            support=Path(request["support"]),
            solution=path,
            announce=self._announce,
            nvcc=request["nvcc"],
            fast_headers=request["fast_headers"],
            failed={key: (message, log) for key, (message, log) in request["failed"].items()},
        )
        self._builder.install()
        if request["guarded"]:
            from harness.worker.cuda_on_cpu import Runtime

            self._runtime = Runtime(
                Path(request["support"]),
                answer_cuda=self._kind == "emulated",
                findings_path=Path(request["findings"]),
            )
            self._runtime.guard_allocations(True)
        with self._user_code():
            with self._draws.replayed():
                module = load_module(
                    path, request["class_name"], init, request["seed"], request["overrides"]
                )
            self._draws.close()
            if request["to_device"]:
                module = module.to(self._device)
        if request["class_name"] == "Model":
            # What a problem's file sets is not granted to the solution, nor to the judge.
            numeric_flags.set_flags(request["numerics"])
        if request["compile"] is not None:
            module = compiled(module, request["compile"])
        self._module = module
        self._inputs = calls.Inputs(self._device)
        self._batch = calls.Batch(self._device)
        # What there is now stays: later collections need not look through all that was imported.
        gc.collect()
        gc.freeze()
        return {
            "state": modules.describe_state(module),
            "built": self._builder.keys,
            "failed": {
                key: (message[:_SAID], log[-_SAID:])
                for key, (message, log) in list(self._builder.failed.items())[:_SAID_BUILDS]
            },
            "files": sorted(self._builder.files),
            "ships_cuda": self._builder.ships_cuda,
            "nvcc": self._builder.nvcc_notes,
            "numeric_flags": numeric_flags.flags(),
        }

    def do_state(self, request: dict[str, Any]) -> None:
        """Copy values into the module's state, in place."""
        values = self._decode(request["values"], request["table"])
        with self._user_code():
            modules.write_state(self._model(), values)

    def do_call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call the module once and hand back everything that the judge compares."""
        module = self._model()
        sizes = self._output_bytes or self._input_bytes
        calls.poison([s for s in sizes if s <= request["poison_limit_bytes"]], self._device)
        if self._kind == "cuda":
            # The current stream lags behind: work on a stream that does not wait comes too early.
            torch.cuda._sleep(_LAG_CYCLES)
        if request["untouched"]:
            inputs = self._inputs.current
        else:
            inputs = self._inputs.refresh(self._decode(request["args"], request["table"]))
        grads = request["grads"]
        output_grads = None if grads is None else self._decode(grads, request["table"])
        if output_grads is not None:
            output_grads = [g if g is None else g.to(self._device) for g in output_grads]
        previous = self._previous_output
        if self._runtime is not None:
            self._runtime.set_thread_order(request["order"], request["rng"])
        self._input_bytes = [t.numel() * t.element_size() for t in modules.tensors_of(inputs)]
        calls.pause(self._device, request["pause_before_s"])
        with (
            launches.counted(self._device, request["count_launches"]) as kernels,
            self._user_code(),
        ):
            output, gradients = modules.call(
                module, request["mode"], inputs, request["rng"], output_grads
            )
        # Nobody waits here: what comes next on the current stream reads the outputs, as in a
        # user's program.
        calls.pause(self._device, request["pause_after_s"])
        odd = calls.oddities(output, parameters=request["parameters"])
        self._output_bytes = [t.numel() * t.element_size() for t in modules.tensors_of(output)]
        self._previous_output = output if request["keep"] else None
        answer: dict[str, Any] = {
            "odd": odd[:10],
            "aliases": modules.aliases(output, inputs)[:100],
            "missing_grads": gradients.missing if gradients else "",
            "kernels": kernels,
        }
        values: dict[str, Any] = {"output": None if odd else output}
        if request["return_state"]:
            values["state"] = modules.module_state(module)
        if gradients is not None:
            values["input_grads"] = gradients.inputs
            values["state_grads"] = gradients.state
        if request["return_previous"] and previous is not None:
            values["previous"] = previous
        return self._encoded(values, answer)

    def do_inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hand back the last call's arguments as they are now: was one of them changed?"""
        return self._encoded({"inputs": self._inputs.current}, {})

    def do_limit_memory(self, request: dict[str, Any]) -> None:
        """Have torch refuse GPU memory beyond a limit, until the checked calls are over."""
        total = torch.cuda.get_device_properties(self._device).total_memory
        share = min(1.0, request["bytes"] / total)
        torch.cuda.set_per_process_memory_fraction(share, self._device)

    def do_finish(self, request: dict[str, Any]) -> None:
        """Let go of all inputs and outputs: what was written around them shows when it is freed."""
        if self._device.type == "cuda":  # timed batches keep many outputs
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)
        self._inputs = calls.Inputs(self._device)
        self._previous_output = self._last = None
        gc.collect()

    def do_stage(self, request: dict[str, Any]) -> None:
        """Take the places of the timed batches' inputs; the judge writes them before each batch."""
        self._batch.clear()
        self._previous_output = self._last = None
        self._inputs = calls.Inputs(self._device)
        gc.collect()
        gc.freeze()
        decoder = ipc.Placed(self._shared["stage"], request["table"])
        for described, grads in zip(request["args"], request["grads"], strict=True):
            self._batch.stage(
                decoder.decode(described), None if grads is None else decoder.decode(grads)
            )

    def do_clear(self, request: dict[str, Any]) -> None:
        """Let go of everything that batches hold, and give cached memory back to the device."""
        self._batch.clear()
        self._previous_output = self._last = None
        self._inputs = calls.Inputs(self._device)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def do_ready(self, request: dict[str, Any]) -> dict[str, Any]:
        """Leave NaN patterns where outputs will come to lie, and say which memory that is."""
        modules.set_mode(self._model(), request["mode"])
        self._batch.outputs = []
        where = calls.poison(request["poison"], self._device)
        gc.collect()
        return {"allocations": self._allocations(where)}

    def do_go(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a batch between *go* and *done*; then say what there was to see, and where."""
        assert self._mailbox is not None
        number, module, batch = request["number"], self._model(), self._batch
        with self._timed():
            order, seed = self._mailbox.await_go(number)
            claimed = batch.run(module, order, request["keep"], seed)
            self._mailbox.done(number, batch.where, batch.width)
        allocations = self._allocations(batch.where)
        return {"claimed_ms": claimed, "allocations": allocations, **batch.forms()}

    def do_alone(self, request: dict[str, Any]) -> None:
        """Make single calls, each when its inputs have come over the mailbox."""
        arena, nbytes = self._shared["call mailbox"], request["bytes"]
        assert isinstance(arena, ipc.HostArena)
        pages, place, batch = mailbox.CallMailbox(arena, nbytes), None, self._batch
        if self._device.type == "cuda":
            place = self._shared["stage"].flat()[:nbytes]
        else:
            batch = calls.Batch(self._device)
            decoder = ipc.Placed(arena, request["table"])
            grads = request["grads"]
            batch.stage(
                decoder.decode(request["args"]), None if grads is None else decoder.decode(grads)
            )
        with self._timed():
            batch.run_alone(self._model(), pages, place, request["number"], request["empty"])

    def do_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say how long the kernels of one call take, by torch's profiler."""
        modules.set_mode(self._model(), request["mode"])
        self._batch.outputs = []
        with launches.durations(self._device) as spent:
            self._batch.run(self._model(), request["order"], 0, 0)
        return {"device_ms": sum(spent) / len(request["order"])}

    def do_again(self, request: dict[str, Any]) -> dict[str, Any]:
        """Encode the last answer once more, into an arena that can hold it."""
        if self._last is None:
            raise RuntimeError("nothing to encode again")
        return self._encoded(*self._last)

    def _allocations(self, where: Iterable[int]) -> list[dict[str, Any]]:
        """Describe the GPU memory that addresses lie in, for the judge to map."""
        if self._device.type != "cuda":
            return []
        from harness.ipc import device_arena

        stage = self._shared.get("stage")
        return device_arena.allocations(
            where, stage if isinstance(stage, device_arena.DeviceArena) else None
        )

    # --- helpers --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Keep what is no part of a call off the clock: collections, guarded allocations."""
        gc.disable()
        if self._runtime is not None:
            self._runtime.guard_allocations(False)
        try:
            yield
        finally:
            if self._runtime is not None:
                self._runtime.guard_allocations(True)
            gc.enable()

    @contextlib.contextmanager
    def _stream(self, *, other: bool = False) -> Iterator[None]:
        """Make the default stream current, as in a user's program, or another one.

        A solution may have left a stream of its own current after the call before.

        Args:
            other: a stream that does not wait for the default one, nor the default one for it.
        """
        if self._device.type != "cuda":
            yield
            return
        stream = torch.cuda.default_stream(self._device)
        if other:
            if self._other_stream is None:
                self._other_stream = torch.cuda.Stream(self._device)
            stream = self._other_stream
        with torch.cuda.stream(stream):
            yield

    @contextlib.contextmanager
    def _user_code(self) -> Iterator[None]:
        if self._kind == "cuda":
            yield
        else:
            with pretend_cuda.pretend(answer_cuda=self._kind == "emulated"):
                yield

    def _model(self) -> torch.nn.Module:
        if self._module is None:
            raise RuntimeError("no module is loaded")
        return self._module

    def _decode(self, description: Any, table: Any) -> Any:
        return ipc.Decoder(self._inbox, table, private=False).decode(description)

    def _encoded(self, values: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        self._last = (values, answer)
        encoder = ipc.Encoder(self._outbox, names=False)
        described = {name: encoder.encode(value) for name, value in values.items()}
        try:
            encoder.finish()
        except ipc.TooSmall as error:
            return {"too_small": error.needed_bytes, "tensors": len(encoder.table)}
        calls.synchronize(self._device)
        self._last = None
        return {**answer, "values": described, "table": encoder.table}


def compiled(module: torch.nn.Module, mode: str) -> torch.nn.Module:
    """Return a module behind torch.compile in one of its modes."""
    wrapped: Any = torch.compile(module, mode=mode)
    assert isinstance(wrapped, torch.nn.Module)
    return wrapped


def describe(error: BaseException) -> dict[str, Any]:
    """Return kind and message of what user code raised, as JSON."""
    text = f"{type(error).__name__}: {error}"
    lowered = text.lower()
    kind = "raised"
    if missing := packages.missing(error):
        return {"kind": "unsupported", "message": missing}
    if isinstance(error, Unsupported):
        kind = "unsupported"
    elif isinstance(error, BuildFailed):
        kind = "build"
    elif isinstance(error, (LoadError, UsageError, SyntaxError)):
        kind, text = "load", str(error)
    elif isinstance(error, MemoryError) or any(sign in lowered for sign in _OUT_OF_MEMORY):
        kind = "oom"
    elif "illegal memory access" in lowered or "misaligned address" in lowered:
        kind = "memory"
    elif isinstance(error, (SystemExit, KeyboardInterrupt)):
        kind = "exit"
    message = text
    if kind in ("unsupported", "build"):
        message = str(error)
    frames = traceback.extract_tb(error.__traceback__)
    user = [f for f in frames if os.sep + "harness" + os.sep not in f.filename]
    place = f"{user[-1].filename}:{user[-1].lineno}" if user else ""
    return {"kind": kind, "message": message[:4000], "place": place}


def main() -> None:
    """Serve the judge on the inherited socket."""
    sandbox.die_with_parent()
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:  # as the judge does, who started us
            signal.signal(number, signal.SIG_DFL)
    channel = ipc.Channel(socket.socket(fileno=int(sys.argv[1])))
    Worker(channel).serve()
    # Threads and exit handlers of a candidate have no say in how this process ends.
    os._exit(0)


if __name__ == "__main__":
    main()
