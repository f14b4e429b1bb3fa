"""Folders of published weights: which files, which architecture, which of their tensors is what."""

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rvllm_jax.system import file_layout
from rvllm_jax.system.atomic import read_json
from rvllm_jax.weights.names import ARCHITECTURES, TIMM, TORCHVISION, NameTable, Rule
from rvllm_jax.weights.safetensors import FileTensor, WeightsError, read_header

INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "decoder/embed/embedding", "decoder/head/kernel"
OURS = "model.json"  # beside our own flat file
UNFINISHED = "unfinished"  # in a folder that is being written; see weights/save.py
UNKNOWN = "unknown tensor"  # before a name that the architecture has not; no path of ours
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
# weights_only: what is in the file is unpickled as tensors and not executed.
TO_SAFETENSORS = (
    'python -c "import pathlib, sys, torch, safetensors.torch as s; f = pathlib.Path(sys.argv[1]); '
    "t = torch.load(f, map_location='cpu', weights_only=True); t = t.get('state_dict', t); "
    "s.save_file({k: v.clone().contiguous() for k, v in t.items()}, "
    "f.with_name(f.stem.replace('pytorch_model', 'model') + '.safetensors'))\""
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of ours in their files: one tensor, or the layers that are stacked.

    `axes` is the order in which a tensor's axes become ours; None: as they are. `layers` are the
    numbers of stacked tensors, ascending, and `theirs` is their name with "{n}" for the number.
    """

    tensors: tuple[FileTensor, ...]
    stacked: bool = False
    axes: tuple[int, ...] | None = None
    layers: tuple[int, ...] = ()
    theirs: str = ""

    @property
    def dtype(self) -> np.dtype:
        """Of all layers: the widest of theirs."""
        dtype = self.tensors[0].dtype
        for tensor in self.tensors[1:]:  # numpy knows no type for both float16 and bfloat16
            dtype = jnp.promote_types(dtype, tensor.dtype)
        return dtype

    def parts(self) -> Iterator[np.ndarray]:
        """The array of ours, a layer at a time where it is stacked."""
        for tensor in self.tensors:
            x = tensor.read().astype(self.dtype, copy=False)
            yield x if self.axes is None else x.transpose(self.axes)

    def read(self) -> np.ndarray:
        """The array of ours as a whole."""
        parts = list(self.parts())
        return np.stack(parts) if self.stacked else parts[0]

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.tensors[0].shape
        if self.axes is not None and len(self.axes) == len(shape):
            shape = tuple(shape[axis] for axis in self.axes)
        return (len(self.tensors), *shape) if self.stacked else shape

    @property
    def piece_axis(self) -> int:
        """Of a tensor as ours, the axis along which its rows in the file follow."""
        return 0 if self.axes is None else self.axes.index(0)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights on disk, nothing of them read but headers: our path -> where it is.

    `config` is the folder's config.json or our model.json, {} where a single file has none.
    `ours`: whether the file is our own. `ignored`: names of theirs that are left out.
    """

    path: Path
    config: Mapping[str, Any]
    entries: Mapping[str, Entry]
    ours: bool
    ignored: tuple[str, ...] = ()


def open_weights(path: str | Path) -> Weights:
    """Reads configuration and headers of a folder, or of one .safetensors file.

    Raises WeightsError: nothing there, pickles (with the command that converts them), a missing
    shard, a damaged file, an architecture that is not known. That the tensors are all there, known
    and of the right shapes is for `load.check` to say, which knows the model.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if (folder / UNFINISHED).exists():
        raise WeightsError(
            f"{folder}: was not written to its end; repeat the command that wrote it"
        )
    tensors = find_tensors(path)
    if (folder / OURS).is_file():
        entries = {name: Entry((tensor,)) for name, tensor in tensors.items()}
        description = file_layout.MODEL.read(folder / OURS, error=WeightsError)
        return Weights(path, description, entries, ours=True)
    config = read_json(folder / "config.json", absent={}, error=WeightsError)
    table = _table(path, config, tensors)
    ignored = [name for name in tensors if table.ignores(name)]
    entries = _entries(table, {n: t for n, t in tensors.items() if n not in ignored})
    if is_tied(config) and EMBEDDING in entries and (head := entries.pop(HEAD, None)):
        _check_copy(head.tensors[0], entries[EMBEDDING].tensors[0])
        ignored.append(head.tensors[0].name)
    return Weights(path, config, entries, ours=False, ignored=tuple(ignored))


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether logits are taken with the embedding; LLaVA's files say it at either level.

    What is neither true nor false is for the reader of sizes to refuse: here no head is left out
    because of it.
    """
    levels = (config, config.get("text_config"))
    return any(isinstance(c, Mapping) and c.get("tie_word_embeddings") is True for c in levels)


def _check_copy(head: FileTensor, embedding: FileTensor) -> None:
    """transformers unties what differs; here it is refused, and not taken in silence."""
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    for row in range(0, head.shape[0] if same else 0, 4096):
        parts = [np.empty((min(4096, head.shape[0] - row), *head.shape[1:]), head.dtype)] * 2
        parts[1] = np.empty_like(parts[0])
        for part, tensor in zip(parts, (head, embedding), strict=True):
            tensor.read_into(part, row)
        same &= parts[0].tobytes() == parts[1].tobytes()
    if not same:
        raise WeightsError(
            f"{head.path}: {head.name} is not {embedding.name}, though config.json says that they "
            "are tied; set tie_word_embeddings to false there if it was trained, else remove it"
        )


def find_tensors(path: Path) -> dict[str, FileTensor]:
    """All tensors by name, of a file or of the files that a folder's index or names list."""
    files = [path] if path.is_file() else _files(path)
    for file in files:
        if file.suffix in PICKLES:
            raise WeightsError(_pickle(file.parent, [file]))
    tensors: dict[str, FileTensor] = {}
    for file in files:
        header = read_header(file)
        if twice := sorted(header.keys() & tensors.keys()):
            raise WeightsError(f"{file}: holds what another shard holds too: {_some(twice)}")
        tensors |= header
    named = read_json(path / INDEX, absent={}, error=WeightsError).get("weight_map")
    if isinstance(named, dict) and {*map(str, named.values())} == {file.name for file in files}:
        absent = [n for n, f in named.items() if n not in tensors or tensors[n].path.name != f]
        if absent:
            raise WeightsError(
                f"{path / INDEX}: names tensors that are not in the shards it says: "
                f"{_some(absent)}. The shards are of another model, or damaged; get them again"
            )
    return tensors


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: is not there; name a folder or a .safetensors file")
    if (folder / "model.safetensors").is_file():  # before an index, as in transformers
        names = ["model.safetensors"]
    elif (folder / INDEX).is_file():
        index = read_json(folder / INDEX, error=WeightsError).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
            raise WeightsError(f"{folder / INDEX}: has no 'weight_map' of tensor to file")
        names = sorted(set(index.values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
        counts = {int(m[1]) for n in names if (m := re.search(r"-of-(\d+)\.safetensors$", n))}
        for count in counts:  # without an index, the names say how many there are
            shards = [n for n in names if re.search(rf"-of-0*{count}\.safetensors$", n)]
            head = shards[0].rpartition("-of-")[0].rpartition("-")[0]
            names = sorted({*names, *(f"{head}-{n:05}-of-{count:05}.safetensors"
                                      for n in range(1, count + 1))})  # fmt: skip
    if outside := [name for name in names if Path(name).name != name]:
        raise WeightsError(f"{folder / INDEX}: names files of other folders: {_some(outside)}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(names)} shards are not there: {_some(missing)}. "
            "Get them from where the others came from"
        )
    if not names:
        pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
        raise WeightsError(
            _pickle(folder, pickles) if pickles else f"{folder}: holds no .safetensors file"
        )
    return [folder / name for name in names]


def _pickle(folder: Path, files: list[Path]) -> str:
    names = " ".join(shlex.quote(str(file)) for file in files)
    return (
        f"{folder}: {_some([file.name for file in files])}: pickle files can execute anything when "
        "they are read, and are not read here. In an environment with torch, convert them:\n"
        f'  for f in {names}; do {TO_SAFETENSORS} "$f"; done'
    )


def _architecture(path: Path, config: Mapping[str, Any]) -> str | None:
    """As transformers names it, or timm."""
    if not (names := config.get("architectures")):
        return config.get("architecture")
    first = names[0] if isinstance(names, list) else names
    if not isinstance(first, str):
        raise WeightsError(
            f"{path}: architectures={names!r} in config.json, expected a list of names"
        )
    return first


def _table(path: Path, config: Mapping[str, Any], tensors: Mapping[str, FileTensor]) -> NameTable:
    name = _architecture(path, config)
    if name in ARCHITECTURES:
        tables = ARCHITECTURES[name]
    elif name is None and "conv1.weight" in tensors:  # a torchvision file has no configuration
        tables = (TORCHVISION,)
    elif name is not None and TIMM.fullmatch(name.partition(".")[0]):
        tables = (TORCHVISION,)
    elif name is None:
        raise WeightsError(
            f"{path}: no config.json says what it is ('architectures'), and its tensors are not "
            f"those of a torchvision ResNet: {_some(list(tensors))}"
        )
    else:
        raise WeightsError(
            f"{path}: the architecture {name!r} is not known; known are "
            f"{', '.join(ARCHITECTURES)}, and timm's resnet18 to resnet152"
        )
    return min(tables, key=lambda table: len(table.unknown(tensors)))


def _entries(table: NameTable, tensors: Mapping[str, FileTensor]) -> dict[str, Entry]:
    """Layers may be missing or of other shapes, and names unknown: `load.check` lists them all."""
    tensors_by_path: dict[str, dict[int, FileTensor]] = {}
    rules_by_path: dict[str, Rule] = {}
    entries = {}
    for name, tensor in tensors.items():
        if (match := table.find(name)) is None:
            entries[f"{UNKNOWN} {name}"] = Entry((tensor,))
            continue
        rule, ours, layer = match
        rules_by_path[ours] = rule
        tensors_by_path.setdefault(ours, {})[layer] = tensor
    for ours, layers in tensors_by_path.items():
        rule, numbers = rules_by_path[ours], tuple(sorted(layers))
        ordered = tuple(layers[number] for number in numbers)
        entries[ours] = Entry(ordered, rule.stacked, rule.axes, numbers, rule.theirs)
    return entries


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
