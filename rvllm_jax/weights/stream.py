"""Tensors of files in pieces: one is read while another is placed.

Buffers are used again: touching new memory costs as much as reading it.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rvllm_jax.weights.open import Entry
from rvllm_jax.weights.safetensors import FileTensor

PIECE = 32 << 20  # bytes
_ALIGNMENT = 64  # bytes


@dataclasses.dataclass(frozen=True)
class Piece:
    """`rows` of a tensor from row `start` on; the whole of one without axes.

    `path` and `layer` say which array of ours it belongs to.
    """

    path: str
    layer: int
    tensor: FileTensor
    start: int
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is in the file."""
        return (self.rows, *self.tensor.shape[1:]) if self.tensor.shape else ()

    def read(self, buffer: "Buffer") -> tuple["Piece", np.ndarray]:
        """The piece and its numbers, in `buffer`."""
        array = buffer.array(self.shape, self.tensor.dtype)
        self.tensor.read_into(array, self.start)
        return self, array


def pieces(path: str, layer: int, tensor: FileTensor, *, whole: bool = False) -> Iterator[Piece]:
    """A tensor in pieces of at most PIECE bytes, one row at least, or as a whole."""
    rows = tensor.shape[0] if tensor.shape else 1
    most = max(rows, 1) if whole else max(1, PIECE // max(1, tensor.size // max(rows, 1)))
    for start in range(0, max(rows, 1), most):
        yield Piece(path, layer, tensor, start, min(most, rows - start))


def plan(entries: Mapping[str, Entry], whole: Collection[str] = ()) -> Iterator[Piece]:
    """The pieces of all arrays, of those whose paths are in `whole` a tensor each."""
    for path, entry in entries.items():
        for layer, tensor in enumerate(entry.tensors):
            yield from pieces(path, layer, tensor, whole=path in whole)


def stream(plan: Iterable[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
    """The pieces in order, each with its numbers, which are overwritten once the next is asked for.

    A thread reads the next in the meantime: host memory holds two pieces. Raises WeightsError
    where a file ends too early.
    """
    older, newer = Buffer(), Buffer()
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for piece in plan:
            following = thread.submit(piece.read, newer)
            older, newer = newer, older
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


class Buffer:
    """Memory that arrays of any content take, one at a time."""

    def __init__(self):
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in it; the one before is overwritten."""
        size = math.prod(shape) * dtype.itemsize
        if len(self._bytes) < size:
            self._bytes = np.empty(0, np.uint8)  # the small one goes first
            self._bytes = aligned((size,), np.dtype(np.uint8))
        return self._bytes[:size].view(dtype).reshape(shape)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any content that starts where JAX takes it on CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    whole = np.empty(size + _ALIGNMENT, np.uint8)
    first = -whole.ctypes.data % _ALIGNMENT
    return whole[first : first + size].view(dtype).reshape(shape)
