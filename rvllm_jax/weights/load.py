"""Weights on disk into arrays on the devices: all of them, or an error that lists what is wrong."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from rvllm_jax.weights import in_memory, on_devices
from rvllm_jax.weights.check import find_faults, listed
from rvllm_jax.weights.open import Entry, Weights
from rvllm_jax.weights.safetensors import WeightsError


def combine(sources: list[Weights]) -> dict[str, Entry]:
    """The arrays of several files; WeightsError where two of them bring the same."""
    entries: dict[str, Entry] = {}
    for source in sources:
        if twice := sorted(source.entries.keys() & entries.keys()):
            raise WeightsError(
                f"{source.path}: brings {', '.join(twice[:8])}, {len(twice)} in all, which a "
                "folder before it brings too; leave one of them out"
            )
        entries |= source.entries
    return entries


def check(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], *, random: str = "", where: str = ""
) -> list[str]:
    """The paths of `targets` that `entries` lacks, all of which the regex `random` must match.

    `targets` maps every path of the model to its shape and dtype. Raises one WeightsError that
    lists all that is missing, surplus, misshapen or of a wrong dtype. Nothing is read.
    """
    missing = [path for path in targets if path not in entries]
    allowed = [path for path in missing if random and re.fullmatch(random, path)]
    absent = [path for path in missing if path not in allowed]
    if faults := find_faults(entries, targets, absent):
        raise WeightsError(
            f"{where}: the weights are not those of this model. Choose the sizes that they were "
            f"made for; what is to stay random must be named:{listed(faults)}"
        )
    return allowed


def load(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays of `entries`, each in the dtype of its target and where `shardings` says.

    `check` comes first. Pieces of tensors are read and go straight to their places: host memory
    holds a few at a time, whatever the model's size.
    """
    cpu = {path: entry for path, entry in entries.items() if _on_cpu(shardings[path])}
    others = {path: entry for path, entry in entries.items() if path not in cpu}
    return on_devices.load(others, targets, shardings) | in_memory.load(cpu, targets, shardings)


def _on_cpu(place) -> bool:
    return next(iter(place.device_set)).platform == "cpu"
