"""Memory in which the frames of a stream's batches are put together, by one process or several.

A ring of slots, each of which holds the frames of one batch. Whoever reads a clip writes it to its
place in the batch, so that no frame is copied between the record and the device; a slot is used
again when nothing refers to its frames any longer. What it spares, measured: a fresh 60 MB array a
batch costs as much in page faults and zeroing as the copying of the frames.

Between processes the memory is a file without a name: nothing of it is in /dev/shm, whose size does
not bound it, and the kernel frees it with the last process, however that ends.
"""

import contextlib
import itertools
import math
import mmap
import os
import time

import numpy as np

from rvllm_jax.system.errors import RvllmError

_KEPT = 3  # batches that the caller may hold without a copy: used, on its way, and one more
_ALIGNMENT = 4096  # bytes; JAX takes an array over without a copy, on a CPU, from 64
_POLL = 5e-4  # seconds between two looks whether a slot is free
_NOBODY = -1


class Closed(Exception):  # noqa: N818  (what ends a wait, not an error)
    """The stream has ended; what waits for its memory ends too."""


class BatchMemoryError(RvllmError, RuntimeError):
    """Memory that this system does not have; the message says what to do."""


class BatchMemory:
    """The slots of a stream of batches, whose frames are `uint8[rows, *shape]`.

    Batches are numbered from `first`, get slots and are taken in this order. Sent to another
    process (pickled, while this one lives) it is the same memory there: `place` is for whoever
    reads clips, everything else for the process that made it.

    Args:
        rows: of a batch.
        shape: of a row's frames.
        first: number of the first batch.
        ahead: rows that may be in work or wait at once: there are slots for all of them, so that
            nothing waits for the caller to let go of a batch.
        shared: whether other processes write to it.

    Raises `BatchMemoryError` where the system cannot share memory without a name.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], first: int, *, ahead: int, shared: bool):
        self.shape = (rows, *shape)
        self._slots = _KEPT + 1 + -(-ahead // rows)
        self._file = _NOBODY
        if shared:
            if not hasattr(os, "memfd_create"):
                raise BatchMemoryError(
                    "processes that load data need Linux, for memory that they share; set "
                    "config.data.workers=0"
                )
            self._file = os.memfd_create("batches")
        self._map()
        if not shared and hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)  # a tenth of the page faults
        self._taken = [False] * self._slots
        self._numbers = itertools.count(first)
        for slot in range(self._slots):
            self._free(slot)

    def _map(self) -> None:
        # Behind the owners of the slots, and the mark of the end, lie the slots.
        self._start, self._bytes = map(_aligned, (8 * (self._slots + 1), math.prod(self.shape)))
        size = self._start + self._slots * self._bytes
        if self._file != _NOBODY:
            os.ftruncate(self._file, size)
        self._memory = mmap.mmap(self._file, size)
        # One number of 8 bytes a slot, written whole: the batch that may be written to it.
        self._owners = np.frombuffer(self._memory, np.int64, self._slots + 1)
        self._closed = self._owners[self._slots :]

    def __reduce__(self):
        return _open, (os.getpid(), self._file, self.shape, self._slots)

    def __del__(self):
        # Arrays of its slots keep the memory itself.
        if getattr(self, "_file", _NOBODY) != _NOBODY:
            os.close(self._file)

    def place(self, number: int, row: int) -> np.ndarray:
        """Where the frames of a row go, `uint8[*shape]`; waits until batch `number` has a slot.

        What is there is what an earlier batch left. Raises `Closed` where the stream has ended.
        """
        while not self._closed[0]:
            for slot in range(self._slots):
                if self._owners[slot] == number:
                    return self._array(slot)[row]
            time.sleep(_POLL)
        raise Closed

    def take(self, number: int) -> np.ndarray:
        """The frames of batch `number`, all of whose rows are written: `uint8[rows, *shape]`.

        They may be changed and kept: a caller who keeps many is given copies.
        """
        slot = self._owners.tolist().index(number)
        if sum(self._taken) < _KEPT:
            self._taken[slot] = True
            self._owners[slot] = _NOBODY
            return np.asarray(_Lease(self, slot))
        frames = self._array(slot).copy()
        self._free(slot)
        return frames

    def close(self) -> None:
        """Ends every wait; batches that were taken stay."""
        self._closed[0] = 1

    def _array(self, slot: int) -> np.ndarray:
        at = self._start + slot * self._bytes
        return np.ndarray(self.shape, np.uint8, self._memory, at)

    def _free(self, slot: int) -> None:
        # May run in any thread and within itself (a finalizer): `next` is one indivisible call.
        self._taken[slot] = False
        self._owners[slot] = next(self._numbers)


class _Lease:
    """Keeps a slot while any array or view, NumPy's or a JAX buffer made of it, is alive.

    The owner at the end of every view's chain of bases is this object: a view's base is never
    another view of the same type, so that no reference to a particular array would tell.
    """

    def __init__(self, memory: BatchMemory, slot: int):
        self._memory, self._slot = memory, slot
        self.__array_interface__ = memory._array(slot).__array_interface__

    def __del__(self):
        with contextlib.suppress(TypeError):  # while the interpreter ends
            self._memory._free(self._slot)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _open(process: int, file: int, shape: tuple[int, ...], slots: int) -> BatchMemory:
    """The memory that `process` made, in another one."""
    memory = object.__new__(BatchMemory)
    memory.shape, memory._slots = shape, slots
    memory._file = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR)
    memory._map()
    return memory
