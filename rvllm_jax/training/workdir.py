"""A working directory: whose configuration it is, and what of it later starts depend on.

As long as it holds no checkpoint nothing depends on it, and a start with another configuration
takes it over. Afterwards it is bound: its config.json, its tokenizer and its decoder's sizes stay.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from rvllm_jax.config import migrate
from rvllm_jax.config.check import resolve
from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.system import atomic, file_layout
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import SHORT, digest, file_digest
from rvllm_jax.weights.hf_config import llama_values
from rvllm_jax.weights.open import open_weights

_START = "start.json"  # which weights a run started from, by content
# Keys that name files: of a bound directory their content stays, and not where it lies.
_FILES = (
    *("data.videos", "data.conversations", "data.validation"),
    *("model.weights", "model.decoder", "tokenizer.folder"),
)

# Keys that may change when a working directory is continued: they change nothing that is trained,
# and what other test questions make of it is asked anew.
MAY_CHANGE = (
    *("data.workers", "data.store", "data.test", "mesh", "parallel", "checkpoint", "log_every"),
    *("max_skipped", "max_unreadable", "evaluation.fusion"),
)


class WorkdirError(RvllmError, RuntimeError):
    """The working directory belongs to another configuration; the message says what differs."""


def is_bound(workdir: str | Path) -> bool:
    """Whether `workdir` holds a complete checkpoint, and so belongs to its configuration."""
    series = ("checkpoints", "best/*", ".aside_checkpoints/*", "best/.aside_*/*")
    paths = [path for parent in series for path in Path(workdir).glob(f"{parent}/*")]
    return any(path.name.isdigit() for path in paths)


def claim(workdir: str | Path, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
    """Makes `workdir` the working directory of `config`, or checks that it is.

    Writes `config.json`. Where the directory is bound it must be of the same configuration, but for
    the ignored keys and the stages that are not scheduled. What an earlier version stored is
    migrated first. Keys of `_FILES` may name other files of the same content; config.json keeps the
    names that they had first.

    Args:
      workdir: made when it is not there.
      config: nested dictionaries and lists of JSON values.
      ignore: dotted keys that may differ; a key covers all below it ("evaluation", "stages.0").

    Raises:
      WorkdirError: the directory belongs to another configuration (each differing key is named
        with its old and new value), or its config.json is missing or unreadable.
    """
    path = atomic.make_folder(workdir) / "config.json"
    config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists
    if is_bound(workdir):
        config = _check_same(path, config, ignore)
    if jax.process_index() == 0:
        atomic.write_json(path, file_layout.RUN.stamp(config), synced=True)


def _check_same(path: Path, config: dict, ignore: Sequence[str]) -> dict:
    """`config` as it is written; raises WorkdirError where it is another."""
    if not path.exists():
        raise WorkdirError(
            f"{path.parent} holds checkpoints, but not the {path.name} that says of which "
            "configuration. Put that file back, or name another --workdir."
        )
    advice = "Put that file back, or name another --workdir."
    stored = migrate.read(path, advice=advice, error=WorkdirError)
    faults = _differences(stored, config, ignore)
    moved = [key for key in faults if key in _FILES and key in flat(config)]
    if len(moved) == len(faults):  # else it is refused whatever they hold
        moved = [key for key in moved if _is_same(key, path.parent, stored, config)]
    if faults := [fault for key, fault in faults.items() if key not in moved]:
        raise WorkdirError(
            f"{path.parent} belongs to another configuration ({path}). Name another --workdir, or "
            "restore these keys:\n  " + "\n  ".join(faults)
        )
    for room, _, name in (key.partition(".") for key in moved):
        config[room][name] = stored[room][name]
    return config


def check_trained_with(workdir: Path, step: int, meta: Mapping[str, Any]) -> None:
    """Raises WorkdirError where config.json is not what the checkpoint of `step` was trained with.

    meta: the checkpoint's; those of earlier versions do not say what they were trained with.
    """
    if not meta.get("config"):
        return
    if faults := _differences(meta["config"], read_config(workdir), MAY_CHANGE):
        raise WorkdirError(
            f"{workdir / 'config.json'}: is not of the checkpoint of step {step}, which was "
            "trained with another configuration. Put that file back, or restore these keys in "
            "it:\n  " + "\n  ".join(faults.values())
        )


def _differences(there: Mapping, now: Mapping, ignore: Sequence[str]) -> dict[str, str]:
    """A line for each key whose values differ, of any versions' configurations."""
    old, new = (flat(_scheduled(migrate.current(values))) for values in (there, now))
    return {
        key: f"{key}: {_shown(old, key)} there, {_shown(new, key)} now"
        for key in sorted(old.keys() | new.keys())
        if _shown(old, key) != _shown(new, key)
        and not any(key == i or key.startswith(i + ".") for i in ignore)
    }


def _is_same(key: str, workdir: Path, stored: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether what a key names has the content that the run depends on, wherever it lies and
    whatever it is called. Of data, `resume.check_made_of` tells before the first update."""
    room, _, name = key.partition(".")
    value = config[room][name]
    if not stored.get(room, {}).get(name):  # nothing that could have been moved
        return False
    if key == "tokenizer.folder":
        kept = workdir / "tokenizer"
        known = value and tokenizers.holds_tokenizer(kept)
        return (
            bool(known) and tokenizers.load(value).fingerprint == tokenizers.load(kept).fingerprint
        )
    if key == "model.decoder":
        return resolve(config).llama == resolve(with_kept_decoder(stored, workdir)).llama
    if key == "model.weights":
        known = atomic.read_json(workdir / _START, absent={}).get("weights")
        if known is None:
            logging.warning(
                "%s: an earlier version began it and did not record the weights' content: it is "
                "not known whether %s=%s is what it started from", workdir, key, value,
            )  # fmt: skip
            return all(Path(folder.strip()).exists() for folder in value.split(","))
        return known == weights_fingerprint(value)
    return bool(value) and Path(value).exists()


def weights_fingerprint(folders: str) -> str:
    """Names the content of the files of weights in `folders`, whatever they are called; reads them.

    folders: as config.model.weights has them, separated by commas. Raises WeightsError.
    """
    names = filter(None, map(str.strip, folders.split(",")))
    entries = [entry for name in names for entry in open_weights(name).entries.values()]
    files = {tensor.path for entry in entries for tensor in entry.tensors}
    return digest(sorted(map(file_digest, files)), SHORT)


def keep_start(recipe: Recipe, workdir: Path) -> None:
    """Notes the content of the weights that a run starts from, until a checkpoint depends on it."""
    if jax.process_index() == 0 and not is_bound(workdir):
        content = {"weights": weights_fingerprint(recipe.model.weights)}
        atomic.write_json(atomic.make_folder(workdir) / _START, content)


def _scheduled(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without the stages that do not run."""
    stages, schedule = config.get("stages"), config.get("schedule")
    if not isinstance(stages, dict) or not isinstance(schedule, str):
        return config
    names = {name.strip() for name in schedule.split(",")}
    return config | {"stages": {name: x for name, x in stages.items() if name in names}}


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists by dotted key; empty ones are values of their own."""
    if not isinstance(value, dict | list) or not value:
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        k: v for name, inner in items for k, v in flat(inner, f"{key}.{name}".strip(".")).items()
    }


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


# What was trained names the folder of its decoder (config.model.decoder=FOLDER), which may be moved
# or deleted afterwards: a run keeps the sizes in WORKDIR/decoder.


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration in config.json, of any version; ConfigError where it cannot be read,
    LayoutError where a newer version wrote it."""
    return migrate.read(workdir / "config.json")


def with_kept_decoder(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """`config`, its decoder's folder the one of `workdir`, once a checkpoint depends on it.

    Before, what `workdir` holds may be the rest of a start with another decoder.
    """
    config, kept = copy.deepcopy(dict(config)), workdir / "decoder"
    model = config.get("model")
    named = not isinstance(model, dict) or model.get("decoder") in DECODERS
    if not named and is_bound(workdir) and (kept / "config.json").is_file():
        config["model"]["decoder"] = str(kept)
    return config


def keep_decoder(recipe: Recipe, workdir: Path) -> None:
    """Writes the sizes of a decoder that is a folder to workdir/decoder, where they stay once a
    checkpoint depends on them."""
    path = workdir / "decoder" / "config.json"
    if not recipe.decoder_folder or (is_bound(workdir) and path.is_file()):
        return
    atomic.make_folder(path.parent)
    # Several hosts may come at once: those after the first find it written.
    atomic.write_json(path, llama_values(recipe.llama, "float32"), only_new=True)
