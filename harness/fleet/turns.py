"""Turns on a device: several pairs check on a GPU side by side, and one pair measures alone.

Loading and checking a pair takes two thirds of its time on a GPU and needs no quiet: 8 of 12.5
seconds (KernelBench's problems at full size, H200, 2026-11-30). So pairs of one run check together.
A pair that has checked everything waits for the clock. From then on no further pair is let in.
When no pair checks any more, the waiting pairs measure one after another.
"""

from __future__ import annotations

import threading
from typing import Protocol

from harness.fleet.slots import FileSlot, Slot

CHECK, CLOCK = "device", "clock"
"""A judge asks first for room on the device to check, then for the device alone to measure."""
_SPARE = 0.9
"""Share of a GPU's memory that pairs side by side may need: their needs are estimates."""
_ROUNDS = 2
"""A run lets in so many times as many pairs as may check side by side, then lets others in."""


class Turn(Protocol):
    """One pair's right to a device."""

    def ask(self, what: str, need_bytes: int | None) -> None:
        """Ask for CHECK or CLOCK; need_bytes of the device's memory, None where unknown."""

    def try_take(self) -> bool:
        """Try to get what the pair asked for, without waiting; return whether the pair has it."""

    @property
    def room_bytes(self) -> int | None:
        """Return the device's memory less the needs of other pairs; None where it is not shared."""

    @property
    def was_shared(self) -> bool:
        """Return whether another pair had the device at the same time."""

    def release(self) -> None:
        """Give everything back; does nothing where there is nothing."""


class SoleTurn:
    """A device that one pair has alone from its checks to its end, such as a CPU."""

    room_bytes = None
    was_shared = False

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    def ask(self, what: str, need_bytes: int | None) -> None:
        """Ask for nothing more than the device."""

    def try_take(self) -> bool:
        return self._slot.try_take()

    def release(self) -> None:
        self._slot.release()


class SharedDevice:
    """A GPU that the pairs of one run share while they check.

    A lock on a file keeps other runs away for as long as a pair of this run has the GPU.

    Args:
        lock: this run's exclusive right to the device.
        side_by_side: how many pairs may check at once.
        memory_bytes: of the device.
    """

    def __init__(self, lock: FileSlot, *, side_by_side: int, memory_bytes: int) -> None:
        self._lock = lock
        self._most = side_by_side
        self._memory = memory_bytes
        self._mutex = threading.Lock()
        self._asking: set[GpuTurn] = set()
        self._needs: dict[GpuTurn, int | None] = {}
        self._checking: set[GpuTurn] = set()
        self._clock: GpuTurn | None = None
        self._let_in = 0

    def turn(self, *, alone: bool = False) -> GpuTurn:
        """Return a pair's right to this device, not asked for yet; alone excludes other pairs."""
        return GpuTurn(self, alone=alone)

    def ask(self, turn: GpuTurn, what: str, need_bytes: int | None) -> None:
        with self._mutex:
            turn.wants = what
            turn.need_bytes = None if turn.alone else need_bytes
            if what == CLOCK:
                self._checking.discard(turn)
            elif turn in self._needs:  # the same pair again, at a smaller size
                self._needs[turn] = turn.need_bytes
                return
            self._asking.add(turn)

    def try_take(self, turn: GpuTurn) -> bool:
        with self._mutex:
            if turn not in self._asking:
                return turn in self._needs
            had = self._start_clock(turn) if turn.wants == CLOCK else self._let_to_check(turn)
            if had:
                self._asking.discard(turn)
            return had

    def release(self, turn: GpuTurn) -> None:
        with self._mutex:
            self._asking.discard(turn)
            self._checking.discard(turn)
            self._needs.pop(turn, None)
            if self._clock is turn:
                self._clock = None
            if not self._needs and (self._let_in or not self._asking):
                self._lock.release()
                self._let_in = 0

    def room_bytes(self, turn: GpuTurn) -> int:
        with self._mutex:
            return self._memory - sum(n or 0 for t, n in self._needs.items() if t is not turn)

    def _start_clock(self, turn: GpuTurn) -> bool:
        if self._checking or self._clock not in (None, turn):
            return False
        self._clock = turn
        return True

    def _let_to_check(self, turn: GpuTurn) -> bool:
        if not self._needs:
            if not self._lock.try_take():
                return False
        elif not self._fits_beside(turn.need_bytes):
            return False
        self._needs[turn] = turn.need_bytes
        self._checking.add(turn)
        self._let_in += 1
        if len(self._needs) > 1:
            for one in self._needs:
                one.was_shared = True
        return True

    def _fits_beside(self, need_bytes: int | None) -> bool:
        """Say whether a pair may check beside those that have the device."""
        measuring = self._clock is not None or len(self._needs) > len(self._checking)
        if measuring or len(self._checking) >= self._most or self._let_in >= _ROUNDS * self._most:
            return False
        needs = [need_bytes, *self._needs.values()]
        known = [need for need in needs if need is not None]
        return len(known) == len(needs) and sum(known) <= _SPARE * self._memory


class GpuTurn:
    """One pair's right to a SharedDevice."""

    def __init__(self, device: SharedDevice, *, alone: bool) -> None:
        self._device = device
        self.alone = alone
        self.wants = ""
        self.need_bytes: int | None = None
        self.was_shared = False

    def ask(self, what: str, need_bytes: int | None) -> None:
        self._device.ask(self, what, need_bytes)

    def try_take(self) -> bool:
        return self._device.try_take(self)

    @property
    def room_bytes(self) -> int:
        return self._device.room_bytes(self)

    def release(self) -> None:
        self._device.release(self)
