"""Arrays out to files: under published names for transformers, or under ours for this project."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rvllm_jax.system import file_layout
from rvllm_jax.system.atomic import TEMPORARY, make_folder, write_json, write_text
from rvllm_jax.system.lock import LOCK
from rvllm_jax.weights.names import NameTable
from rvllm_jax.weights.open import INDEX, OURS, UNFINISHED, Entry
from rvllm_jax.weights.safetensors import NAMES, WeightsError, write

FLAT = "model.safetensors"
SHARD_BYTES = 5_000_000_000  # as transformers splits


def save_flat(
    folder: str | Path, arrays: Mapping[str, jax.Array | Entry], config: Mapping[str, Any]
):
    """Our own form: model.safetensors with every array under its path, and model.json.

    Entries of files are copied from there, bit for bit, a layer at a time.
    """
    folder = _new_folder(folder)
    specs = {path: (np.dtype(x.dtype), tuple(x.shape)) for path, x in arrays.items()}

    def read(path: str) -> Iterable[np.ndarray]:
        array = arrays[path]
        return array.parts() if isinstance(array, Entry) else [np.asarray(array)]

    write(folder / FLAT, specs, read)
    write_json(folder / OURS, file_layout.MODEL.stamp(config))


def save_published(
    folder: str | Path,
    arrays: Mapping[str, jax.Array],
    table: NameTable,
    config: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
):
    """The arrays under the names of `table`, and their config.json, as transformers reads them.

    One file, or shards of at most `shard_bytes` with an index where that is too little. Raises
    WeightsError for an array that the table has no name for.
    """
    specs, read = _named(arrays, table)
    if unwritable := {str(d) for d, _ in specs.values() if d not in NAMES}:
        raise WeightsError(f"safetensors holds no {', '.join(sorted(unwritable))}")
    folder = _new_folder(folder)
    shards = _shards(specs, shard_bytes)
    for file, names in shards.items():
        write(folder / file, {name: specs[name] for name in names}, read)
    if len(shards) > 1:
        total = sum(_bytes(spec) for spec in specs.values())
        weight_map = {name: file for file, names in shards.items() for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config)


def _named(arrays: Mapping[str, jax.Array], table: NameTable) -> tuple[dict, Callable]:
    """(name of theirs -> dtype and shape, a function from such a name to its array in parts)."""
    specs, sources = {}, {}
    for path, x in arrays.items():
        if (named := table.names(path, x.shape[0])) is None:
            raise WeightsError(f"{path}: this kind of folder has no name for it; leave it out")
        rule, names = named
        shape = tuple(x.shape[1:] if rule.stacked else x.shape)
        if rule.axes is not None:
            shape = tuple(shape[rule.axes.index(axis)] for axis in range(len(shape)))
        for layer, name in enumerate(names):
            specs[name] = (np.dtype(x.dtype), shape)
            sources[name] = (path, layer if rule.stacked else None, rule.axes)

    def read(name: str) -> Iterator[np.ndarray]:
        path, layer, axes = sources[name]
        array = np.asarray(arrays[path] if layer is None else arrays[path][layer])
        yield array if axes is None else array.transpose(np.argsort(axes))

    return specs, read


def _bytes(spec) -> int:
    dtype, shape = spec
    return math.prod(shape) * dtype.itemsize


def _shards(specs: Mapping[str, Any], most: int) -> dict[str, list[str]]:
    """File name -> names of its tensors, in order."""
    parts, room = [[]], most
    for name, spec in specs.items():
        if parts[-1] and _bytes(spec) > room:
            parts.append([])
            room = most
        parts[-1].append(name)
        room -= _bytes(spec)
    if len(parts) == 1:
        return {FLAT: parts[0]}
    count = len(parts)
    return {f"model-{n + 1:05}-of-{count:05}.safetensors": part for n, part in enumerate(parts)}


def check_new(folder: str | Path) -> None:
    """Raises WeightsError where `folder` is there and holds anything, or is none.

    What a writer that was killed left there does not count.
    """
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names -= {LOCK, f"{UNFINISHED}{TEMPORARY}"}
    if folder.exists() and (not folder.is_dir() or names and UNFINISHED not in names):
        raise WeightsError(f"{folder}: exists and is not an empty folder; name a new one")


def _new_folder(folder: str | Path) -> Path:
    check_new(folder)
    return make_folder(folder, advice="Name a folder that can be written")


@contextlib.contextmanager
def filling(folder: str | Path) -> Iterator[None]:
    """Within it `folder`, new or empty, is filled with files; what fails leaves none.

    UNFINISHED stands in it meanwhile: readers refuse such a folder, and the next writer clears it.
    """
    folder = _new_folder(folder)
    try:
        _clear(folder)
        write_text(folder / UNFINISHED, "", advice="Name a folder that can be written")
        yield
    except BaseException:
        _clear(folder)
        raise
    finally:
        (folder / UNFINISHED).unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Removes the files of a folder, but for its lock; the mark that they are no whole last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == UNFINISHED):
        if path.is_file() and path.name != LOCK:
            path.unlink()
