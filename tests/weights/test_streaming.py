"""Pieces of tensors: each row once and in order, one made ahead and no more."""

import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from rvllm_jax.weights import streaming
from rvllm_jax.weights.errors import WeightsError
from rvllm_jax.weights.tensor_file import read_header

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


def plan(tensors, *, turn, whole=False):
    for name, tensor in tensors.items():
        matrix = turn and len(tensor.shape) == 2
        yield from streaming.pieces(name, 0, tensor, turn=matrix, whole=whole)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("size", [1, 3000, 1 << 20])
def test_the_pieces_are_the_tensors(tensors, size, turn, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", size)
    monkeypatch.setattr(streaming, "WHOLE", size)
    found = {name: [] for name in ARRAYS}
    for piece, array in streaming.stream(plan(tensors, turn=turn)):
        assert array.nbytes <= max(size, array.nbytes // max(piece.rows, 1))
        assert not array.size or array.ctypes.data % 64 == 0
        assert piece.start == sum(len(part) for part in found[piece.path] if part.ndim)
        found[piece.path].append((array.T if piece.turn else array).copy())
    for name, parts in found.items():
        joined = np.concatenate(parts) if parts[0].ndim else parts[0]
        assert joined.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(joined, ARRAYS[name])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1026, 514), (1025, 514), (514, 513), (2, 2), (1, 7)])
def test_matrices_of_any_size_are_turned(shape, dtype, tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize))
    matrix = numbers.astype(np.uint8).view(dtype)[..., 0]  # any bits, those of no number too
    save_file({"x": matrix}, tmp_path / "x.safetensors")
    (tensor,) = read_header(tmp_path / "x.safetensors").values()
    ((_, turned),) = streaming.stream(streaming.pieces("x", 0, tensor, turn=True, whole=False))
    assert turned.tobytes() == np.ascontiguousarray(matrix.T).tobytes()


def test_what_is_turned_is_no_piece_unless_it_is_large(tensors, monkeypatch):
    matrix = tensors["matrix"]
    monkeypatch.setattr(streaming, "PIECE", 1)
    for most, count in ((matrix.size, 1), (matrix.size - 1, matrix.shape[0])):
        monkeypatch.setattr(streaming, "WHOLE", most)
        assert len(list(streaming.pieces("m", 0, matrix, turn=True, whole=False))) == count
    assert len(list(streaming.pieces("m", 0, matrix, turn=False, whole=False))) > 1


def test_what_is_split_over_devices_comes_whole(tensors, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE", 1)
    assert [piece.path for piece in plan(tensors, turn=True, whole=True)] == [*tensors]


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
    pieces = streaming.pieces("m", 0, tensors["matrix"], turn=False, whole=False)
    stream = streaming.stream(pieces)
    first, array = next(stream)
    assert second.wait(10), "the next piece is not read ahead"
    np.testing.assert_array_equal(array, rows[:10])
    assert made == [0, 10]
    stream.close()


@pytest.mark.parametrize("turn", [False, True])
def test_a_file_that_became_shorter_is_told(tensors, turn):
    path = tensors["matrix"].path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="ends within"):
        list(streaming.stream(plan(tensors, turn=turn)))
