"""Runs timed batches in one worker: who runs is passed on like a baton, the others stand still."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness import bell, wire
from harness.judge.remote import RemoteWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One batch by the judge's clock.

    Attributes:
        total_ms: from *go* until elements that the judge picked after *done* lay in its memory.
        done_ms: from *go* to *done*.
        claimed_ms: what the worker's own CUDA events say, None without a GPU.
        order: slots in the order of the calls.
        picks: positions whose elements were shown.
        elements: raw element numbers; modulo a tensor's length they are the elements.
    """

    total_ms: float
    done_ms: float
    claimed_ms: float | None
    order: tuple[int, ...]
    picks: tuple[int, ...]
    elements: np.ndarray


class Baton:
    """One worker under the clock.

    Args:
        role: name in the figures.
        worker: loaded.
        device: what it runs on.
        trusted: runs no code of the candidate's; a candidate is stopped when it is not its turn.
        timeout_s: for one batch.
        clock: seconds; tests inject their own.

    Attributes:
        keep: how many outputs of a batch it keeps.
    """

    def __init__(
        self,
        role: str,
        worker: RemoteWorker,
        device: torch.device,
        *,
        trusted: bool,
        timeout_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.role = role
        self.worker = worker
        self.trusted = trusted
        self.keep = bell.MAX_CALLS
        self.timeout_s = timeout_s
        self._clock = clock
        self._number = 0
        self._resting = False
        on_gpu = device.type == "cuda"
        page = wire.HostArena.create(bell.BYTES)
        self._bell = bell.Bell(page, nap_s=0.0 if on_gpu else 5e-5)
        worker.share("bell", page)
        self.show: wire.Arena
        if on_gpu:
            from harness import wire_cuda

            self.show = wire_cuda.DeviceArena.create(bell.SHOW_BYTES, str(device))
        else:
            self.show = wire.HostArena.create(bell.SHOW_BYTES)
        worker.share("show", self.show)

    def arm(self, mode: str, poison: Sequence[int], *, each: bool) -> None:
        """Bring the worker to the start line: memory poisoned, waiting for *go*, stopped.

        Args:
            mode: forward, eval or train.
            poison: sizes of the blocks that the batch's outputs will take, bytes.
            each: synchronize after each call.
        """
        self.wake()
        self._number += 1
        self.worker.send(
            "go",
            number=self._number,
            mode=mode,
            poison=list(poison),
            each=each,
            keep=self.keep,
        )
        self._bell.wait_armed(self._number, self._looker())
        # Everyone is stopped here, the trusted too: what it costs to be let go on is in every
        # batch, and in the hand-shake that is subtracted.
        self.worker.pause()
        self._resting = True

    def run(self, order: Sequence[int], positions: int, secret: random.Random, most: int) -> Timed:
        """Start the clock, let the worker run, stop when picked elements have arrived.

        Args:
            order: slots; written together with *go*, so that nobody knows it before.
            positions: how many outputs of the batch there are to pick from.
            secret: source of the choice.
            most: how many outputs to pick, some perhaps twice; the last one is always among
                them. Every role shows as many: what that takes must cancel.
        """
        look = self._looker()
        elements = np.array([secret.getrandbits(62) for _ in range(bell.ELEMENTS)], dtype=np.int64)
        first = max(positions - self.keep, 0)
        chosen = [positions - 1] if positions else []
        for _ in range(most - 1 if positions else 0):
            chosen.append(secret.randrange(first, positions))
        chosen.sort()
        self._bell.write_order(order)
        self.worker.see_it_stood()
        began = self._clock()
        self.worker.resume_family()  # a helper's head start is on the clock
        self._bell.go(self._number)
        self.worker.resume()
        self._resting = False
        self._bell.wait_done(self._number, look)
        done = self._clock()
        self._bell.pick(self._number, chosen, elements)
        self._bell.wait_shown(self._number, look)
        shown = self._clock()
        claimed = self.worker.answer().get("claimed_ms")
        return Timed(
            total_ms=(shown - began) * 1e3,
            done_ms=(done - began) * 1e3,
            claimed_ms=float(claimed) if isinstance(claimed, (int, float)) else None,
            order=tuple(order),
            picks=tuple(chosen),
            elements=elements,
        )

    def rest(self) -> None:
        """Stop a candidate and all that it started, until wake(): it is not its turn."""
        if not self.trusted and not self._resting:
            self.worker.pause()
            self._resting = True

    def wake(self) -> None:
        """Let the worker answer requests again."""
        if self._resting:
            self.worker.see_it_stood()
            self.worker.resume_family()
            self.worker.resume()
            self._resting = False

    def shown(self, row: int, column: int, like: torch.Tensor) -> torch.Tensor:
        """Return a private copy of the shown elements of one tensor of one pick."""
        cell = (row * bell.MAX_TENSORS + column) * bell.CELL_BYTES
        nbytes = bell.ELEMENTS * like.element_size()
        return self.show.flat()[cell : cell + nbytes].clone().view(like.dtype)

    def stage(self, arena: Any, table: Any, args: Any, grads: Any) -> None:
        """Let the worker map the staged inputs."""
        self.wake()
        self.worker.share("stage", arena)
        self.worker.ask("stage", table=table, args=args, grads=grads)

    def device_ms(self, mode: str, order: Sequence[int]) -> float | None:
        """Return the kernel time of one call that the profiler in the worker claims."""
        self.wake()
        answer = self.worker.ask("profile", mode=mode, order=list(order)).get("device_ms")
        return float(answer) if isinstance(answer, (int, float)) and answer > 0 else None

    def _looker(self) -> Callable[[], None]:
        deadline = time.monotonic() + self.timeout_s
        return lambda: self.worker.look(deadline)
