"""Tiles: the numbers are those of numpy's own rounding, wherever they lie."""

import ml_dtypes
import numpy as np
import pytest

from rvllm_jax.weights.tiles import SIDE, Tiles

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def rounded(x, dtype):
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(np.float32).astype(dtype)


def test_every_half_becomes_the_nearest_bfloat16():
    ours = np.zeros((256, 256), ml_dtypes.bfloat16)
    Tiles().convert(HALVES.reshape(256, 256), ours)
    theirs = rounded(HALVES.reshape(256, 256), ours.dtype)
    assert ours.tobytes() == theirs.tobytes()
    assert ours.tobytes() != np.zeros_like(ours).tobytes()


@pytest.mark.parametrize("held", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("wanted", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE - 1, 514), (7, 1), (0, 3)])
def test_tiles_within_larger_arrays_are_turned(held, wanted, shape):
    shape = tuple(min(size, SIDE) for size in shape)
    numbers = np.random.default_rng(0).normal(0, 1e-4, (SIDE + 3, SIDE + 5)).astype(held)
    tile = numbers[3 : 3 + shape[0], 5 : 5 + shape[1]]
    whole = np.zeros((SIDE + 5, SIDE + 1), wanted)
    out, tiles = whole[1 : 1 + shape[1], 1 : 1 + shape[0]], Tiles()
    tiles.turn(np.zeros_like(tile), np.zeros_like(out))  # nothing of it stays in the scratch
    tiles.turn(tile, out)
    np.testing.assert_array_equal(out, rounded(tile, wanted).T)
    assert np.count_nonzero(whole) == np.count_nonzero(out)
