"""Which videos a model was trained on: training_videos.json in a run and beside what it exports.

`{"videos": [name], "unknown": [source]}`: the names of the videos of this training and of those
whose weights it started from; `unknown` are the folders of weights that say nothing about theirs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.system.atomic import read_json, write_json
from rvllm_jax.training.workdir import is_bound
from rvllm_jax.weights.safetensors import WeightsError

FILE = "training_videos.json"


def read(folder: str | Path) -> dict[str, Any] | None:
    """What a run, or what was exported of one, was trained on; None where nothing says so.

    Raises WeightsError for a file that is broken.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    advice = "restore it, or remove it: then the training videos count as unknown"
    content = read_json(path, advice=advice, error=WeightsError)
    names = {key: content.get(key) for key in ("videos", "unknown")}
    for key, listed in names.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise WeightsError(f"{path}: cannot be read: {key} is no list of names; {advice}")
    return names


def merged(sources: Iterable[str | Path]) -> dict[str, Any] | None:
    """What sources were trained on together; None where none of them says so."""
    known = {str(source): read(source) for source in sources}
    if not any(known.values()):
        return None
    videos = {video for each in known.values() if each for video in each["videos"]}
    unknown = {name for each in known.values() if each for name in each["unknown"]}
    unknown |= {source for source, each in known.items() if each is None}
    return {"videos": sorted(videos), "unknown": sorted(unknown)}


def record(workdir: Path, videos: Iterable[str], weights: str) -> None:
    """Notes, before the first update, what a run is trained on.

    weights: the folders that it starts from, separated by commas; once a checkpoint depends on
    them the file holds what they say, and they may be moved or go. What it held stays: a run that
    goes on with other videos has seen both.
    """
    earlier = read(workdir)
    weights = "" if earlier and is_bound(workdir) else weights
    sources = sorted({*map(str.strip, weights.split(","))} - {""})
    before = merged([*sources, workdir] if earlier else sources)
    before = before or {"videos": [], "unknown": sources}
    content = before | {"videos": sorted({*videos, *before["videos"]})}
    if content != earlier and jax.process_index() == 0:
        write(workdir, content)


def write(folder: str | Path, content: dict[str, Any]) -> None:
    # A name a line; surrogates of file names are escaped.
    write_json(Path(folder) / FILE, content, indent=0)
