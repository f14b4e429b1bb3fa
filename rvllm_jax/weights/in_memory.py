"""Arrays of files for CPU devices: threads write pieces where they stay, in memory that JAX takes.

XLA on CPU would transpose and round some 4 times as slowly, and into memory that it must touch
first; numpy's own memory comes in large pages.
"""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from rvllm_jax.weights import stream
from rvllm_jax.weights.names import MATRIX
from rvllm_jax.weights.open import Entry
from rvllm_jax.weights.stream import Buffer, Piece
from rvllm_jax.weights.tiles import SIDE, Tiles

_MOST_THREADS = 8  # a disk has no more to give; each holds a piece
Box = tuple[tuple[int, int], ...]  # of an array's axes, first and one past the last


def load(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays of `entries`, as `load.load` gives them.

    A step that gives an array's memory away (donation) makes a copy the first time: the memory is
    numpy's.
    """
    parts = {
        path: _Parts(entry, np.dtype(targets[path].dtype), shardings[path])
        for path, entry in entries.items()
    }
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    thread = threading.local()

    def prepare() -> None:
        thread.buffer, thread.tiles = Buffer(), Tiles()

    def write(piece: Piece) -> None:
        parts[piece.path].write(*piece.read(thread.buffer), thread.tiles)

    with ThreadPoolExecutor(threads, initializer=prepare) as pool:
        written = [pool.submit(write, piece) for piece in stream.plan(entries)]
        try:
            for future in written:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return {path: part.array() for path, part in parts.items()}


class _Parts:
    """An array of ours as its devices hold it: a part for each, equal ones once."""

    def __init__(self, entry: Entry, dtype: np.dtype, sharding):
        self._entry, self._sharding = entry, sharding
        self._parts: dict[Box, np.ndarray] = {}
        self._devices: dict[jax.Device, Box] = {}
        for device, index in sharding.addressable_devices_indices_map(entry.shape).items():
            box = tuple(i.indices(n)[:2] for i, n in zip(index, entry.shape, strict=True))
            self._devices[device] = box
            if box not in self._parts:
                shape = tuple(stop - start for start, stop in box)
                self._parts[box] = stream.aligned(shape, dtype)

    def write(self, piece: Piece, numbers: np.ndarray, tiles: Tiles) -> None:
        """Writes a piece, as it is in the file, where it belongs."""
        axes, along = self._entry.axes, self._entry.piece_axis
        for box, part in self._parts.items():
            if self._entry.stacked:
                (first, stop), *box = box
                if not first <= piece.layer < stop:
                    continue
                part = part[piece.layer - first]
            ours, theirs = [slice(None)] * len(box), [slice(*ends) for ends in box]
            if box:  # of the rows that both have
                first, stop = box[along]
                start, stop = max(first, piece.start), min(stop, piece.start + piece.rows)
                if start >= stop:
                    continue
                ours[along] = slice(start - first, stop - first)
                theirs[along] = slice(start - piece.start, stop - piece.start)
            if axes is not None:
                theirs = [theirs[axes.index(axis)] for axis in range(len(axes))]
            _fill(part[tuple(ours)], numbers[tuple(theirs)], axes, tiles)

    def array(self) -> jax.Array:
        """The array, in the memory of its parts."""
        parts = [jax.device_put(self._parts[i], device) for device, i in self._devices.items()]
        return jax.make_array_from_single_device_arrays(self._entry.shape, self._sharding, parts)


def _fill(ours: np.ndarray, theirs: np.ndarray, axes: tuple[int, ...] | None, tiles: Tiles) -> None:
    """ours[...] = theirs.transpose(axes); without axes `ours` is one block of memory."""
    if axes is None:
        ours, theirs = ours.reshape(-1, copy=False), theirs.reshape(-1)
        for first in range(0, len(theirs), SIDE**2):
            some = slice(first, first + SIDE**2)
            tiles.convert(theirs[some], ours[some])
    elif axes == MATRIX:
        for row in range(0, theirs.shape[0], SIDE):
            for column in range(0, theirs.shape[1], SIDE):
                rows, columns = slice(row, row + SIDE), slice(column, column + SIDE)
                tiles.turn(theirs[rows, columns], ours[columns, rows])
    else:
        ours[...] = theirs.transpose(axes)  # a convolution: small
