"""safetensors files: headers checked as a whole, tensors read and written one at a time.

The safetensors library reads no bfloat16 into numpy and maps files into memory; here a tensor is
read into memory of its own, which goes when the tensor has gone to its device. The format: eight
bytes with the header's length (little endian), the header (JSON), the tensors' bytes.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from rvllm_jax.system.atomic import replacing
from rvllm_jax.system.errors import RvllmError


class WeightsError(RvllmError, ValueError):
    """Weights that cannot be used; the message names the file, what is in it and what to do."""


DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"I{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"U{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    "BOOL": np.dtype(bool),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
AGAIN = "The file is damaged or was not downloaded completely; get it again"


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor of a file, not read yet: `start` is its first byte in the file."""

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own."""
        array = np.empty(self.shape, self.dtype)
        self.read_into(array)
        return array

    def read_into(self, array: np.ndarray, row: int = 0) -> None:
        """Fills `array`, contiguous, with the tensor's bytes from its row `row` on."""
        view = memoryview(array.reshape(-1).view(np.uint8))
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + row * math.prod(self.shape[1:]) * self.dtype.itemsize)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise WeightsError(f"{self.path}: ends within {self.name!r}. {AGAIN}")
                done += count


def read_header(path: str | Path) -> dict[str, FileTensor]:
    """The tensors of a file by name. Every length is checked against the file's size.

    Raises WeightsError: not there, cut short, or a header that is no header or lies.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(path, file, size)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in header.items()}
    end = start
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.size)):
        if tensor.start != end:
            raise WeightsError(
                f"{path}: {tensor.name!r} starts at byte {tensor.start:,}, expected {end:,}, where "
                f"the tensor before it ends. {AGAIN}"
            )
        end += tensor.size
    if end != size:
        raise WeightsError(
            f"{path}: has {size:,} bytes, its header tells of {end:,}"
            f"{': it is cut short' if size < end else ''}. {AGAIN}"
        )
    return tensors


def _header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the tensors start."""
    first = file.read(8)
    if first == b"version ":
        raise WeightsError(
            f"{path}: is no safetensors file but, it seems, a Git LFS pointer: run `git lfs pull` "
            "in its folder"
        )
    length = int.from_bytes(first, "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise WeightsError(
            f"{path}: is no safetensors file, or cut short: of its {size:,} bytes the header "
            f"should take {length:,}. {AGAIN}"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its header is no JSON ({error}). {AGAIN}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: its header is no JSON object. {AGAIN}")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; where a key stands twice, readers would differ in what they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int) -> FileTensor:
    try:
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(kind, str) and isinstance(shape, list)
        whole &= all(type(n) is int and n >= 0 for n in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise WeightsError(f"{path}: the header's entry of {name!r} is {entry!r}. {AGAIN}")
    if kind.startswith(("F8_", "F6_", "F4")):  # without their scales the numbers are others
        raise WeightsError(
            f"{path}: {name!r} is of dtype {kind!r}: quantised weights are not read here. "
            "Dequantise them first, or get the ones in bfloat16 that they were made of"
        )
    if kind not in DTYPES:
        raise WeightsError(f"{path}: {name!r} is of dtype {kind!r}; known are {', '.join(DTYPES)}")
    tensor = FileTensor(path, name, DTYPES[kind], tuple(shape), start + first)
    if last - first != tensor.size:
        raise WeightsError(
            f"{path}: {name!r}, {kind}{shape}, takes {tensor.size:,} bytes, but the header gives "
            f"it {last - first:,}. {AGAIN}"
        )
    return tensor


def write(
    path: str | Path,
    specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    read: Callable[[str], Iterable[np.ndarray]],
) -> None:
    """Writes the tensors of `specs` (name to dtype and shape) in its order.

    `read(name)` gives a tensor in parts along its first axis; one part at a time is in memory. The
    file is there complete or not at all.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in specs.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        kind = NAMES[np.dtype(dtype)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight, as the format advises
    path = Path(path)
    with replacing(path, synced=True) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in specs.items():
            before = file.tell()
            for part in read(name):
                if part.dtype != dtype:
                    raise ValueError(f"{name}: {part.dtype}, announced {dtype}")
                file.write(memoryview(np.ascontiguousarray(part).reshape(-1).view(np.uint8)))
            if file.tell() - before != math.prod(shape) * np.dtype(dtype).itemsize:
                raise ValueError(f"{name}: its parts are not {dtype}{list(shape)}")
