"""Parts of weights that are not taken over, such as a projector made for another encoder."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rvllm_jax.weights.check import PROJECTOR
from rvllm_jax.weights.safetensors import WeightsError


def left_out(paths: Iterable[str], regex: str) -> list[str]:
    """The paths that the whole of `regex` matches; [] for "".

    Raises WeightsError for a broken regex, one that matches nothing, and one that matches a part
    of what only works as a whole: encoder, projector or decoder.
    """
    if not regex:
        return []
    try:
        found = sorted(path for path in paths if re.fullmatch(regex, path))
    except re.error as error:
        raise WeightsError(f"--leave_out={regex!r} is no regex: {error}") from error
    if not found:
        rooms = ", ".join(sorted({_room(path) for path in paths}))
        raise WeightsError(
            f"--leave_out={regex!r} matches no path; there are those of {rooms}: 'projector/.*'"
        )
    kept = {_room(path): path for path in set(paths) - set(found)}
    if split := sorted({_room(path) for path in found} & kept.keys()):
        raise WeightsError(
            f"--leave_out={regex!r} leaves {kept[split[0]]} there; leave out all of the "
            f"{split[0]} ('{split[0]}/.*') or nothing of it"
        )
    return found


def without(description: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The model.json of what is left of a model, when whole parts of it are gone: `arrays`.

    It is no whole video model any more, so the recipe goes too.
    """
    rooms = {_room(path) for path in arrays}
    found = {key: value for key, value in description.items() if key in rooms}
    if "projector" in rooms:
        found["features"], found["width"] = arrays[PROJECTOR].shape
        if "layout" in description:  # ours has places of the visual tokens
            found["layout"] = description["layout"]
    return found


def _room(path: str) -> str:
    return path.partition("/")[0]
