"""Configurations and parameters that earlier versions stored, as if this one had written them.

The tables say which keys came, and by what values the versions before them behaved; which were
renamed and removed; and which parameters came. A key in none of them has in the schema a default by
which it changes nothing. Whoever adds a key that a recipe must name, renames or removes one, or
adds a parameter to the model, adds a line here, with the commit's date.

What is stored is migrated silently; on the command line the old name is refused (config/cli.py).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rvllm_jax.config.check import ConfigError
from rvllm_jax.config.keys import complete
from rvllm_jax.config.schema import Recipe
from rvllm_jax.system import file_layout

UNLIMITED = 10**9


class AddedKey(NamedTuple):
    """A key that came with a version, and the value by which the versions before it behaved.

    In `key`, "*" stands for each section of a level: "stages.*.warmup".
    """

    key: str
    before: Any
    version: str  # commit and date


ADDED = (
    AddedKey("evaluation.probe_videos", 1, "b720787 of 2026-11-23"),  # none was asked: the least
    AddedKey("data.short", "pad", "6b958ee of 2026-11-25"),
    AddedKey("data.long", "window", "6b958ee of 2026-11-25"),
    AddedKey("data.flip", False, "6b958ee of 2026-11-25"),
    AddedKey("max_unreadable", UNLIMITED, "b2ed6f6 of 2026-11-25"),
    AddedKey("evaluation.test_clips", "1x1", "baa016f of 2026-11-25"),
    AddedKey("evaluation.fusion", "vote", "1b2f542 of 2026-11-30"),
)
RENAMED: dict[str, str] = {}  # old key -> new one, whose values mean the same
REMOVED: dict[str, str] = {}  # key that is ignored where it is stored -> what to do without it
# Parameters that came with a version; with zeros the model is that of the versions before it.
ADDED_PARAMETERS = {"projector/places/embedding": "b05f7d2 of 2026-11-25"}


def read(path: str | Path, **how: Any) -> dict[str, Any]:
    """The configuration in a config.json, of any version. how: of `read_json`.

    Raises LayoutError where a newer version wrote it, and what `how` says where it is broken.
    """
    return current(file_layout.RUN.read(path, **({"error": ConfigError} | how)))


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config`, nested and plain, as this version would have written it.

    What is no configuration is left as it is, for the check to refuse.
    """
    made = copy.deepcopy(dict(config))
    for key in REMOVED:
        for section, name in _places(made, key):
            section.pop(name, None)
    for old, new in RENAMED.items():
        name_now = new.rpartition(".")[2]
        for section, name in _places(made, old):
            if name in section:
                section.setdefault(name_now, section.pop(name))
    for key, before, _ in ADDED:
        for section, name in _places(made, key):
            section.setdefault(name, before)
    return complete(Recipe, made)


def _places(node: Any, key: str) -> Iterator[tuple[dict, str]]:
    """The sections that a key may stand in, each with the key's name there."""
    name, _, rest = key.partition(".")
    if not isinstance(node, dict):
        return
    if not rest:
        yield node, name
        return
    for section in list(node.values()) if name == "*" else [node.get(name)]:
        yield from _places(section, rest)


def with_added_parameters(
    params: Mapping[str, jax.Array],
    targets: Mapping[str, jax.ShapeDtypeStruct],
    place: Callable[[str], Any] = lambda path: None,
) -> dict[str, jax.Array]:
    """`params` of an earlier version's checkpoint, with zeros for what the model has got since.

    place: the sharding of a path; None: the default device.
    """
    zeros = {
        path: jax.device_put(jnp.zeros(targets[path].shape, targets[path].dtype), place(path))
        for path in ADDED_PARAMETERS.keys() & targets.keys() - params.keys()
    }
    return {**params, **zeros}


def missing_parameters(paths: Iterable[str]) -> str:
    """In words, which version continues what lacks these arrays; "" for others."""
    came = [f"{path} came with {version}" for path, version in ADDED_PARAMETERS.items()
            if any(name.endswith(path) for name in paths)]  # fmt: skip
    if not came:
        return ""
    return (
        f" It was trained by an earlier version: {'; '.join(came)}. Only a version before that "
        "continues it; chat, evaluate and convert open it in this one too."
    )
