"""Tiles of a file's numbers into those of an array: rounded and transposed by numpy, in the cache.

Scratch memory is used again, since touching new memory costs more than the work, and its rows are
padded: where rows lie a power of two apart, a column's numbers push each other out of the cache.
"""

import ml_dtypes
import numpy as np

SIDE = 512  # rows and columns of a tile at most
_PADDING = 32  # numbers
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Tiles:
    """The scratch memory of one thread."""

    def __init__(self):
        self._scratch: dict[tuple[str, np.dtype], np.ndarray] = {}

    def convert(self, tile: np.ndarray, out: np.ndarray) -> None:
        """out[...] = tile, SIDE x SIDE numbers at most, rounded to the nearest, ties to even."""
        if tile.dtype == np.float16 and out.dtype == _BFLOAT16:
            tile = self._bfloat16(tile)
        np.copyto(out, tile, casting="unsafe")

    def turn(self, tile: np.ndarray, out: np.ndarray) -> None:
        """out[...] = tile.T of a tile [m, n], rounded likewise."""
        rows, columns = tile.shape
        straight = self._array("straight", out.dtype)[:rows, :columns]
        turned = self._array("turned", out.dtype)[:columns, :rows]
        self.convert(tile, straight)
        np.copyto(turned, straight.T)
        np.copyto(out, turned)

    def _bfloat16(self, tile: np.ndarray) -> np.ndarray:
        """A tile in float16, some 3 times as fast as by way of float32: many words at a time.

        Both have a sign, an exponent and a fraction in this order: three bits of the fraction are
        rounded off, and the exponent counts from 127 instead of 15.
        """
        theirs, ours, size = (self._flat(name, np.uint16, tile.size) for name in "abc")
        theirs.reshape(tile.shape)[...] = tile.view(np.uint16)
        np.bitwise_and(theirs, 0x7FFF, out=size)
        np.right_shift(size, 3, out=ours)
        ours &= 1
        ours += 3
        ours += size
        ours >>= 3
        ours += (127 - 15) << 7
        # Zero, numbers below the smallest exponent, infinities and what is no number.
        size -= 0x0400
        others = np.greater_equal(size, 0x7800, out=self._flat("others", np.bool_, tile.size))
        special = np.flatnonzero(others)
        np.bitwise_and(theirs, 0x8000, out=size)
        ours |= size
        ours = ours.view(_BFLOAT16)
        with np.errstate(invalid="ignore"):  # of what is no number
            ours[special] = theirs[special].view(np.float16).astype(np.float32)
        return ours.reshape(tile.shape)

    def _flat(self, name: str, dtype: type, size: int) -> np.ndarray:
        return self._array(name, np.dtype(dtype)).reshape(-1)[:size]

    def _array(self, name: str, dtype: np.dtype) -> np.ndarray:
        if (name, dtype) not in self._scratch:
            self._scratch[name, dtype] = np.empty((SIDE, SIDE + _PADDING), dtype)
        return self._scratch[name, dtype]
