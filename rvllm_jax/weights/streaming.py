"""Tensors of files on their way to the devices, in pieces: one is read while another is placed.

Buffers are used again: touching new memory costs as much as reading it. They start at 64 bytes, so
that JAX takes them on CPU as they are, without a copy.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from rvllm_jax.weights.tensor_file import FileTensor

PIECE = 32 << 20  # bytes
WHOLE = 256 << 20  # bytes of a turned tensor that is no piece: its columns are written slowly
_ALIGNMENT = 64  # bytes
_TILE = 512  # rows and columns of a matrix that are turned at once; they stay in the cache
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Piece:
    """`rows` of a tensor from row `start` on; the whole of one without axes.

    `path` and `layer` say which array of ours it belongs to. `turn`: a matrix, given transposed.
    """

    path: str
    layer: int
    tensor: FileTensor
    start: int
    rows: int
    turn: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is in the file."""
        return (self.rows, *self.tensor.shape[1:]) if self.tensor.shape else ()


def pieces(
    path: str, layer: int, tensor: FileTensor, *, turn: bool, whole: bool
) -> Iterator[Piece]:
    """A tensor in pieces of at most PIECE bytes, one row at least, or as a whole."""
    rows = tensor.shape[0] if tensor.shape else 1
    whole = whole or (turn and tensor.size <= WHOLE)
    most = max(rows, 1) if whole else max(1, PIECE // max(1, tensor.size // max(rows, 1)))
    for start in range(0, max(rows, 1), most):
        yield Piece(path, layer, tensor, start, min(most, rows - start), turn)


def stream(plan: Iterable[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
    """The pieces in order, each with its numbers, which are overwritten once the next is asked for.

    Threads read and turn what comes next in the meantime: host memory holds two pieces, and four
    where pieces are turned. Raises WeightsError where a file ends too early.
    """
    plan = list(plan)
    read = _ahead(_read(plan))
    return _ahead(_turned(read)) if any(piece.turn for piece in plan) else read


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; the next is made in a thread while one is used, and none beyond it."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _read(plan: Iterable[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
    buffers = _Buffers()
    for piece in plan:
        array = buffers.array(piece.shape, piece.tensor.dtype)
        piece.tensor.read_into(array, piece.start)
        yield piece, array


def _turned(read: Iterator[tuple[Piece, np.ndarray]]) -> Iterator[tuple[Piece, np.ndarray]]:
    """The matrices transposed, on CPU some 4 times as fast as XLA does it; the others copied."""
    buffers = _Buffers()
    for piece, array in read:
        if not piece.turn:
            turned = buffers.array(array.shape, array.dtype)
            turned[...] = array
            yield piece, turned
            continue
        turned = buffers.array(array.shape[::-1], array.dtype)
        for row in range(0, array.shape[0], _TILE):
            for column in range(0, array.shape[1], _TILE):
                tile = array[row : row + _TILE, column : column + _TILE]
                _turn(tile, turned[column : column + _TILE, row : row + _TILE])
        yield piece, turned


def _turn(tile: np.ndarray, turned: np.ndarray) -> None:
    """Writes the transposed matrix [m, n] into one [n, m].

    Numbers of two bytes go as pairs, of one column and two rows: numpy moves a number in the time
    of a pair, and pairs it makes many at a time.
    """
    if tile.dtype.itemsize != 2 or any(size % 2 for size in tile.shape):
        turned[...] = tile.T
        return
    pairs, out = tile.view(np.uint32), turned.view(np.uint32)
    upper, lower = pairs[0::2], pairs[1::2]  # rows, each of numbers in even and odd columns
    even = np.left_shift(lower, 16)
    even |= upper & 0xFFFF
    out[0::2] = even.T
    odd = np.right_shift(upper, 16)
    odd |= lower & 0xFFFF0000
    out[1::2] = odd.T


class _Buffers:
    """Two buffers that take turns: what one gave stays until the second array after it."""

    def __init__(self):
        self._older, self._newer = np.empty(0, np.uint8), np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of any content, in the buffer that was not used last."""
        size = math.prod(shape) * dtype.itemsize
        self._older, self._newer = self._newer, self._older
        if len(self._newer) < size + _ALIGNMENT:
            self._newer = np.empty(0, np.uint8)  # the small one goes first
            self._newer = np.empty(size + _ALIGNMENT, np.uint8)
        first = -self._newer.ctypes.data % _ALIGNMENT
        return self._newer[first : first + size].view(dtype).reshape(shape)
