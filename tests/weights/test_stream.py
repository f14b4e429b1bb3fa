"""Pieces of tensors: each row once and in order, one made ahead and no more."""

import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from rvllm_jax.weights import stream as streaming
from rvllm_jax.weights.safetensors import WeightsError, read_header

ARRAYS = {
    "matrix": np.random.default_rng(0).normal(size=(300, 700)).astype(np.float32),
    "vector": np.arange(1000, dtype=np.float16),
    "scalar": np.array(2.5, np.float64),
    "convolution": np.arange(2 * 3 * 5 * 5, dtype=np.float32).reshape(2, 3, 5, 5),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def tensors(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors")
    return read_header(tmp_path / "x.safetensors")


def plan(tensors, *, whole=False):
    for name, tensor in tensors.items():
        yield from streaming.pieces(name, 0, tensor, whole=whole)


@pytest.mark.parametrize("size", [1, 3000, 1 << 20])
def test_the_pieces_are_the_tensors(tensors, size, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", size)
    found = {name: [] for name in ARRAYS}
    for piece, array in streaming.stream(plan(tensors)):
        assert array.nbytes <= max(size, array.nbytes // max(piece.rows, 1))
        assert not array.size or array.ctypes.data % 64 == 0
        assert piece.start == sum(len(part) for part in found[piece.path] if part.ndim)
        found[piece.path].append(array.copy())
    for name, parts in found.items():
        joined = np.concatenate(parts) if parts[0].ndim else parts[0]
        assert joined.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(joined, ARRAYS[name])


def test_what_is_split_over_devices_comes_whole(tensors, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", 1)
    assert [piece.path for piece in plan(tensors, whole=True)] == [*tensors]


def test_a_piece_stays_while_the_next_is_made_and_no_more_are(tensors, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", 700 * 4 * 10)
    rows = ARRAYS["matrix"]
    made, second = [], threading.Event()
    read_into = streaming.FileTensor.read_into

    def counted(self, array, row=0):
        read_into(self, array, row)
        made.append(row)
        if len(made) == 2:
            second.set()

    monkeypatch.setattr(streaming.FileTensor, "read_into", counted)
    pieces = streaming.pieces("m", 0, tensors["matrix"])
    stream = streaming.stream(pieces)
    first, array = next(stream)
    assert second.wait(10), "the next piece is not read ahead"
    np.testing.assert_array_equal(array, rows[:10])
    assert made == [0, 10]
    stream.close()


def test_a_file_that_became_shorter_is_told(tensors):
    path = tensors["matrix"].path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="ends within"):
        list(streaming.stream(plan(tensors)))
