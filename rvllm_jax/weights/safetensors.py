"""safetensors files: headers checked by the library, tensors read and written in pieces.

Reading and writing are by hand. The library maps a file into memory and copies what is asked for
into new arrays: 805 MB in bfloat16 took it 0.31 s of a core and 884 MB of memory; pieces of 32 MiB
read into one array, 0.12 s and 65 MB with all that Python holds (safetensors 0.8, from the system's
cache). It writes tensors that are all in memory at once; here one part of one is.

The format: eight bytes with the header's length (little endian), the header (JSON: name -> dtype,
shape, first and last byte), the tensors' bytes.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

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
    """The tensors of a file by name.

    Raises WeightsError: not there, cut short, a header that is none or that the file's bytes do not
    agree with, a name that stands in it twice, a dtype that is not read here.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            first = file.read(8)
            if first == b"version ":
                raise WeightsError(
                    f"{path}: is no safetensors file but, it seems, a Git LFS pointer: run `git "
                    "lfs pull` in its folder"
                )
            with safe_open(path, framework="numpy"):  # checks shapes and offsets to the last byte
                length = int.from_bytes(first, "little")
                header = json.loads(file.read(length), object_pairs_hook=_refuse_twice)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: is no safetensors file, or cut short: {error}. {AGAIN}"
        ) from error
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. The library takes the last of two tensors of one name; readers differ."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SafetensorError(f"{twice!r} stands in its header twice")
    return values


def _tensor(path: Path, name: str, entry: Mapping[str, Any], start: int) -> FileTensor:
    kind = entry["dtype"]
    if kind.startswith(("F8_", "F6_", "F4")):  # without their scales the numbers are others
        raise WeightsError(
            f"{path}: {name!r} is of dtype {kind!r}: quantised weights are not read here. "
            "Dequantise them first, or get the ones in bfloat16 that they were made of"
        )
    if kind not in DTYPES:
        raise WeightsError(f"{path}: {name!r} is of dtype {kind!r}; known are {', '.join(DTYPES)}")
    return FileTensor(
        path, name, DTYPES[kind], tuple(entry["shape"]), start + entry["data_offsets"][0]
    )


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
