"""safetensors files as the library writes them, and files that are damaged."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rvllm_jax.weights.safetensors import WeightsError, read_header, write

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "scalar": np.array(2.5, np.float64),
    "none": np.zeros((0, 3), np.float32),
    "c": np.arange(5, dtype=np.int64),
}


def rewritten(path, change):
    """The file with another header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.fixture
def file(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def test_the_librarys_file_is_read(file):
    tensors = read_header(file)
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        read = tensors[name].read()
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_the_library_reads_ours_and_bfloat16_keeps_its_bits(tmp_path):
    bf16 = np.array([1.0, -2.5, 3e38, np.nan], ml_dtypes.bfloat16)
    arrays = ARRAYS | {"bf16": bf16}
    specs = {name: (x.dtype, x.shape) for name, x in arrays.items()}
    write(tmp_path / "y", specs, lambda name: [arrays[name]])
    read = read_header(tmp_path / "y")["bf16"].read()
    np.testing.assert_array_equal(read.view(np.uint16), bf16.view(np.uint16))
    del specs["bf16"]
    write(tmp_path / "y", specs, lambda name: [arrays[name]])
    theirs = load_file(tmp_path / "y")
    assert theirs.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(theirs[name], array)


def test_a_part_that_was_not_announced_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="a: its parts"):
        write(tmp_path / "y", {"a": (np.dtype("f4"), (3,))}, lambda _: [np.zeros(2, "f4")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused(file, kept):
    """Within the header and behind it."""
    file.write_bytes(file.read_bytes()[:kept])
    message = "header too small|invalid header length" if kept >= 0 else "not fully covered"
    with pytest.raises(WeightsError, match=rf"x\.safetensors: .* cut short: .*({message})"):
        read_header(file)


LIES = {
    "length": (lambda h: h["a"].update(data_offsets=[0, 8]), "invalid shape, .* or offset"),
    "shape": (lambda h: h["a"].update(shape=[2, 4]), "invalid shape, data type, or offset"),
    "overlap": (lambda h: h["b"].update(data_offsets=[0, 8]), "invalid offset for tensor"),
    "negative": (lambda h: h["a"].update(shape=[-2, -3]), "integer `-2`, expected usize"),
    "entry": (lambda h: h.update(a=[1]), "invalid type: integer `1`"),
    "dtype": (lambda h: h["a"].update(dtype="Q4"), "unknown variant `Q4`"),
    "complex": (lambda h: h["a"].update(dtype="C64", shape=[3]), "'a' is of dtype 'C64'; known"),
    "fp8": (
        lambda h: h["a"].update(dtype="F8_E4M3", shape=[24]),
        "'a' is of .*: quantised.*Dequantise",
    ),
    "scales": (
        lambda h: h["a"].update(dtype="F8_E8M0", shape=[24]),
        "'a' is of .*: quantised.*Dequantise",
    ),
    "dtype of a list": (lambda h: h["a"].update(dtype=["F32"]), "invalid type: sequence"),
    "shape of a text": (lambda h: h["none"].update(shape=""), "expected a sequence"),
    "negative offset": (
        lambda h: h["a"].update(data_offsets=[-24, 0]),
        "integer `-24`, expected usize",
    ),
    "beyond the end": (
        lambda h: h["a"].update(data_offsets=[2**40, 2**40 + 24]),
        "invalid offset for tensor",
    ),
    "surplus bytes": (lambda h: h.pop("a"), "invalid offset for tensor"),
    "huge": (
        lambda h: h["a"].update(shape=[2**40, 3], data_offsets=[0, 3 * 2**42]),
        "invalid offset for tensor",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(file, lie):
    change, message = LIES[lie]
    rewritten(file, change)
    with pytest.raises(WeightsError, match=message):
        read_header(file)


def test_bytes_behind_the_last_tensor_are_refused(file):
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="file not fully covered"):
        read_header(file)


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    for content, message in (
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "z: .*Git LFS pointer: .*git lfs pull",
        ),
        (b"\x03" + b"\0" * 7 + b"[1]", "z: is no safetensors file.*expected struct"),
    ):
        (tmp_path / "z").write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            read_header(tmp_path / "z")
    with pytest.raises(WeightsError, match="absent: cannot be read"):
        read_header(tmp_path / "absent")


def test_headers_that_a_reader_could_take_in_two_ways_or_not_at_all_are_refused(tmp_path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for header, message in (
        (f'{{"a":{entry},"a":{entry}}}', "'a' stands in its header twice"),
        (f'{{"a":{entry[:-1]},"shape":[1]}}}}', "duplicate field `shape`"),
        ("[" * 100_000, "invalid JSON"),
    ):
        text = header.encode()
        (tmp_path / "z").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(WeightsError, match=f"z: is no safetensors file.*{message}"):
            read_header(tmp_path / "z")
    for length in (2**63, 100_000_001):  # more than any header has; nothing of that size is made
        with (tmp_path / "z").open("wb") as file:
            file.write(length.to_bytes(8, "little") + b"{}")
            file.truncate(1 << 30)  # sparse: the file itself would have room for the second
        with pytest.raises(WeightsError, match="z: is no safetensors file"):
            read_header(tmp_path / "z")


def test_rows_are_read_in_place_and_a_file_that_ends_too_early_says_so(file):
    tensors = read_header(file)
    row = np.empty((1, 3), np.float32)
    tensors["a"].read_into(row, 1)
    np.testing.assert_array_equal(row, ARRAYS["a"][1:])
    file.write_bytes(file.read_bytes()[:-4])  # after the header was read
    last = max(tensors.values(), key=lambda tensor: tensor.start + tensor.size)
    with pytest.raises(WeightsError, match=f"ends within '{last.name}'"):
        last.read()
