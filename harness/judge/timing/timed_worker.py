"""Runs timed batches in one worker, which is suspended while another worker is timed."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness import ipc
from harness.ipc import mailbox
from harness.judge.workers.peer_memory import Layout, PeerMemory
from harness.judge.workers.remote import RemoteWorker

_ELEMENTS = 64
"""Elements that are read of each tensor of a chosen output; on the CPU each is a system call."""
_TENSORS = 64
"""Tensors that are read of a chosen call: reading all gradients of a model takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Contents of a worker's memory that the judge read right after *done*.

    Attributes:
        layout: of a call's outputs, as the worker described it after the batch before; None in the
            first batch over newly staged inputs, of which no output is read.
        numbers: by position in the order of the calls, the elements that were read: numbers modulo
            a tensor's length.
        elements: by position, one entry per tensor, read on the clock; None if it could not be.
        chosen: the position whose output is judged by more than these elements.
        whole: all tensors of that output, read after the clock stopped; None if they were not.
        inputs: contents of the inputs' memory; None if it was not read.
        words: by position, what stands for the values of the call that are no tensors.
        unseen: whether an output lay in GPU memory that was allocated during the batch.
        blind: why some memory cannot be read.
    """

    layout: Layout | None
    numbers: Mapping[int, np.ndarray]
    elements: Mapping[int, Sequence[torch.Tensor | None]]
    chosen: int
    whole: Sequence[torch.Tensor | None] | None
    inputs: Any = None
    words: Mapping[int, Sequence[int]] = field(default_factory=dict)
    unseen: bool = False
    blind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One batch by the judge's clock.

    Attributes:
        total_ms: from *go* until the judge had read elements of outputs after *done*.
        claimed_ms: time by the worker's own CUDA events, None without a GPU.
        order: slots in the order of the calls.
        seed: of all generators before the first call, one more before each further call; 0 if they
            are not seeded.
        seen: contents of the worker's memory.
        moved: the state that calls change, before the batch and after it; None if it was not read,
            and None in place of a tensor that could not be.
    """

    total_ms: float
    claimed_ms: float | None
    order: tuple[int, ...]
    seen: Seen
    seed: int = 0
    moved: tuple[list[torch.Tensor | None], list[torch.Tensor | None]] | None = None


def tensors_read(numbers: np.ndarray, count: int) -> set[int]:
    """Return which tensors of a call have elements read: all, or what the secret chooses of many.

    Args:
        numbers: which elements: drawn anew for each call that is looked at.
        count: tensors of a call.
    """
    if count <= _TENSORS:
        return set(range(count))
    chosen = np.random.default_rng(numbers).choice(count, _TENSORS, replace=False)
    return set(chosen.tolist())


class TimedWorker:
    """One worker under the clock.

    Args:
        role: name in the figures.
        worker: loaded.
        device: what it runs on.
        timeout_s: for one batch.
        clock: seconds; tests inject their own.

    Attributes:
        keep: how many outputs of a batch it keeps.
        moving: names of the tensors of its state that calls change.
        values: how many values of an output are no tensors.
    """

    def __init__(
        self,
        role: str,
        worker: RemoteWorker,
        device: torch.device,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.role = role
        self.worker = worker
        self.keep = mailbox.MAX_CALLS
        self.moving: Sequence[str] = ()
        self.values = 0
        self.timeout_s = timeout_s
        self._clock = clock
        self._number = 0
        self._suspended = False
        on_gpu = device.type == "cuda"
        page = ipc.HostArena.create(mailbox.BATCH_BYTES)
        self._mailbox = mailbox.BatchMailbox(page, nap_s=0.0 if on_gpu else 5e-5)
        worker.share("mailbox", page)
        self._peer_memory = PeerMemory(worker.memory_fd, device, worker.max_outbox_bytes)
        self._layout: Layout | None = None
        self._device = device

    @property
    def on_gpu(self) -> bool:
        """Return whether the worker's memory is a GPU's."""
        return self._device.type == "cuda"

    @property
    def layout(self) -> Layout | None:
        """Return what a call gives, as the worker described it after its last batch."""
        return self._layout

    def prepare(self, mode: str, poison: Sequence[int]) -> None:
        """Prepare a batch: the worker fills memory with NaN, waits for *go*, and is stopped.

        Args:
            mode: forward, eval or train.
            poison: sizes of the blocks that the batch's outputs will take, bytes.
        """
        self.resume()
        self._number += 1
        self._map(self.worker.ask("ready", mode=mode, poison=list(poison)))
        self.worker.send("go", number=self._number, keep=self.keep, moving=list(self.moving))
        self._mailbox.wait_ready(self._number, self._looker())
        # Trusted workers are stopped too: so the cost of resuming is in every batch, and in the
        # batch overhead that is subtracted.
        self.worker.pause()
        self._suspended = True

    def run(
        self,
        order: Sequence[int],
        secret: random.Random,
        most: int,
        whole: bool,
        see_inputs: Callable[[set[int]], Any] | None = None,
        seed: int = 0,
        *,
        state: bool = False,
    ) -> Timed:
        """Start the clock, let the worker run, read elements of its outputs, stop the clock.

        Args:
            order: slots; written together with *go*, so that the worker cannot know it before.
            secret: source of the choice of outputs, which the worker never learns.
            most: how many outputs to read, perhaps other elements of the same one; the last one is
                always among them. It is the same for every role, so that its cost cancels.
            whole: read one of them whole.
            see_inputs: called with the slots of these outputs, before the worker can know that they
                were read.
            seed: of all generators, 0 leaves them as they are.
            state: read the state that calls change, before and after.
        """
        look = self._looker()
        before = self._moving_now() if state else []
        positions = range(max(len(order) - self.keep, 0), len(order))
        chosen = [len(order) - 1, *(secret.choice(positions) for _ in range(most - 1))]
        once = np.random.default_rng(secret.getrandbits(128))
        numbers = [once.integers(0, 1 << 62, _ELEMENTS) for _ in chosen]
        prepared = [self.plan_read(n) for n in numbers]
        self._mailbox.write_order(order, seed)
        self.worker.see_it_stood()
        began = self._clock()
        self.worker.resume_family()  # a helper's head start is on the clock
        self._mailbox.go(self._number)
        self.worker.resume()
        self._suspended = False
        self._mailbox.wait_done(self._number, look)
        where, missed = self._mailbox.where(len(order)), self._peer_memory.missed
        elements = [self.elements(where[p], at) for p, at in zip(chosen, prepared, strict=True)]
        self._wait()
        seen_at = self._clock()
        after = self._moving_now() if state else []
        known = self._layout.moving_at if self._layout else ()
        one = secret.randrange(most)
        forms = len(self._layout.forms) if self._layout else 0
        seen = Seen(
            layout=self._layout,
            numbers=dict(zip(chosen, numbers, strict=True)),
            elements=dict(zip(chosen, elements, strict=True)),
            chosen=chosen[one],
            whole=self.whole(where[chosen[one]]) if whole else None,
            inputs=see_inputs({order[p] for p in chosen}) if see_inputs else None,
            words={p: where[p][forms:].tolist() for p in chosen},
            unseen=self._peer_memory.missed > missed,
            blind=self._peer_memory.blind,
        )
        self._wait()
        answer = self.worker.answer()
        self._map(answer, whole=True)
        self._layout = Layout.of(answer)
        if len(self._layout.moving) != len(self.moving):
            raise self.worker.tampered("it describes other state than it was asked for")
        if state and self._layout.moving_at != known:
            after = self._moving_now()  # the module's calls put other tensors there
        return Timed(
            total_ms=(seen_at - began) * 1e3,
            claimed_ms=answer["claimed_ms"],
            order=tuple(order),
            seed=seed,
            seen=seen,
            moved=(before, after) if state else None,
        )

    def _moving_now(self) -> list[torch.Tensor | None]:
        """Read the state that calls change, where it lay after the batch before."""
        layout = self._layout or Layout()
        with self.claims():
            return [
                self._peer_memory.whole(at, form) if form is not None and form.elements else None
                for at, form in zip(layout.moving_at, layout.moving, strict=True)
            ]

    @contextlib.contextmanager
    def claims(self) -> Iterator[None]:
        """Treat what the worker says as a claim: an impossible one is the worker's fault."""
        try:
            yield
        except (ipc.WireViolation, OverflowError, ValueError, MemoryError) as error:
            raise self.worker.tampered(str(error) or type(error).__name__) from None

    def _map(self, answer: dict[str, Any], *, whole: bool = False) -> None:
        """Note where the worker's memory is."""
        with self.claims():
            self._peer_memory.learn(answer["allocations"], whole=whole)

    def plan_read(self, numbers: np.ndarray) -> list[Any]:
        """Prepare to read these elements of each tensor that a call returns.

        Args:
            numbers: modulo a tensor's length.
        """
        if self._layout is None:
            return []
        forms = self._layout.forms
        read = tensors_read(numbers, len(forms))
        with self.claims():
            return [
                self._peer_memory.plan_read(form, numbers)
                if i in read and form is not None and form.elements
                else None
                for i, form in enumerate(forms)
            ]

    def elements(self, where: np.ndarray, prepared: list[Any]) -> list[torch.Tensor | None]:
        """Read some elements of each tensor of one call.

        Args:
            where: its addresses.
            prepared: which.
        """
        return self._read(
            where,
            lambda peer_memory, i, at, form: (
                None if prepared[i] is None else peer_memory.elements(at, form, prepared[i])
            ),
        )

    def whole(self, where: np.ndarray) -> list[torch.Tensor | None]:
        """Read each tensor of one call.

        Args:
            where: its addresses.
        """
        return self._read(where, lambda peer_memory, i, at, form: peer_memory.whole(at, form))

    def _read(
        self,
        where: np.ndarray,
        how: Callable[[PeerMemory, int, int, ipc.Form], torch.Tensor | None],
    ) -> list[torch.Tensor | None]:
        """Read each tensor of one call; None for those without memory that the judge can see."""
        forms = self._layout.forms if self._layout else ()
        found: list[torch.Tensor | None] = [None] * len(forms)
        look = self._looker()
        with self.claims():
            for i, (at, form) in enumerate(zip(where, forms, strict=False)):
                if form is not None and form.elements and at:
                    found[i] = how(self._peer_memory, i, int(at), form)
                    look()  # memory can be slow to read
        return found

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self._device)

    def suspend(self) -> None:
        """Stop the worker and all of its descendants until resume(): another worker is timed."""
        if not self._suspended:
            self.worker.pause()
            self._suspended = True

    def resume(self) -> None:
        """Let the worker answer requests again."""
        if self._suspended:
            self.worker.see_it_stood()
            self.worker.resume_family()
            self.worker.resume()
            self._suspended = False

    def pin(self, cores: set[int]) -> None:
        """Let the worker's main thread move to some cores."""
        self.resume()
        self.worker.ask("pin_main_thread", cores=sorted(cores))

    def runs_on(self, cores: set[int]) -> bool:
        """Return whether the worker's main thread runs on some cores only."""
        return os.sched_getaffinity(self.worker.pid) <= cores

    def clear(self) -> None:
        """Let the worker free all inputs and outputs, and the judge unmap their memory."""
        self.resume()
        self._peer_memory.close()
        # The worker allocates anew. Its next batch shows where: of that one no output is read.
        self._layout = None
        self.worker.ask("clear")

    def stage(self, arena: Any, table: Any, args: Any, grads: Any) -> None:
        """Let the worker map the staged inputs."""
        self.resume()
        self.worker.share("stage", arena)
        self._peer_memory.lend(arena)
        self.worker.ask("stage", table=table, args=args, grads=grads)

    def device_ms(self, mode: str, order: Sequence[int]) -> float | None:
        """Return the kernel time of one call that the profiler in the worker claims."""
        self.resume()
        claimed: float = self.worker.ask("profile", mode=mode, order=list(order))["device_ms"]
        return claimed or None

    def _looker(self) -> Callable[[], None]:
        deadline = time.monotonic() + self.timeout_s
        number = self._number
        return lambda: self.worker.look(deadline, lambda: self._mailbox.is_done(number))
