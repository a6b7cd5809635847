"""Memory that the judge allocates and a worker maps."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Protocol

import torch

from harness.domain import HarnessError

ALIGN = 512


class Arena(Protocol):
    """Shared bytes that both processes address as one flat uint8 tensor."""

    size_bytes: int

    def flat(self) -> torch.Tensor:
        """Return all bytes as a uint8 tensor that shares the arena's memory."""

    def piece(self, offset: int, nbytes: int) -> torch.Tensor:
        """Return some bytes as a uint8 tensor with a storage of its own over them."""


class HostArena:
    """A sealed memfd, mapped shared."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._map = mmap.mmap(fd, max(size_bytes, mmap.PAGESIZE))
        self._flat = torch.frombuffer(self._map, dtype=torch.uint8)

    @classmethod
    def create(cls, size_bytes: int) -> HostArena:
        """Create an arena of at least size_bytes that no peer can resize.

        Raises:
            HarnessError: the machine has no memory for it.
        """
        size_bytes = max(-(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.PAGESIZE)
        fd = os.memfd_create("arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(
                fd,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            return cls(fd, size_bytes)
        except OSError as error:
            os.close(fd)
            raise HarnessError(
                f"the system refuses {size_bytes} bytes of shared memory: {error}"
            ) from error

    def flat(self) -> torch.Tensor:
        """Return all bytes as a uint8 tensor that shares the arena's memory."""
        return self._flat

    def piece(self, offset: int, nbytes: int) -> torch.Tensor:
        """Return some bytes as a uint8 tensor with a storage of its own over them."""
        return torch.frombuffer(self._map, dtype=torch.uint8, offset=offset, count=nbytes)

    def close(self) -> None:
        """Close the descriptor. The mapping is freed with the last tensor over it."""
        os.close(self.fd)


def aligned(nbytes: int) -> int:
    """Return nbytes rounded up to the alignment of tensors in an arena."""
    return -(-nbytes // ALIGN) * ALIGN
