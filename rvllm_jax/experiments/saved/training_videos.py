"""Which videos a model was trained on: training_videos.json in a run and beside what it exports.

`{"videos": [name], "unknown": [source]}`: the names of the videos of this training and of those
whose weights it started from; `unknown` are the folders of weights that say nothing about theirs.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.data.store.shards import write_atomically
from rvllm_jax.weights.safetensors import WeightsError

FILE = "training_videos.json"


def read(folder: str | Path) -> dict[str, Any] | None:
    """What a run, or what was exported of one, was trained on; None where nothing says so.

    Raises WeightsError for a file that is broken.
    """
    path = Path(folder) / FILE
    try:
        content = json.loads(path.read_bytes())
        videos, unknown = content["videos"], content["unknown"]
        if not all(isinstance(name, str) for name in [*videos, *unknown]):
            raise TypeError("names that are no texts")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: cannot be read ({error!r}); restore it, or remove it: then the training "
            "videos count as unknown"
        ) from error
    return {"videos": list(videos), "unknown": list(unknown)}


def record(workdir: Path, videos: Iterable[str], weights: str) -> None:
    """Notes, before the first update, what a run is trained on.

    weights: the folders that it starts from, separated by commas. What the file held stays: a run
    that goes on with other videos has seen both.
    """
    seen, unknown = set(videos), set()
    for source in filter(None, map(str.strip, weights.split(","))):
        before = read(source)
        seen |= set(before["videos"]) if before else set()
        unknown |= set(before["unknown"]) if before else {source}
    held = read(workdir) or {"videos": [], "unknown": []}
    content = {
        "videos": sorted(seen | set(held["videos"])),
        "unknown": sorted(unknown | set(held["unknown"])),
    }
    if content != held and jax.process_index() == 0:
        write(workdir, content)


def write(folder: str | Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=0)  # a name a line; surrogates of file names are escaped
    write_atomically(Path(folder) / FILE, f"{text}\n".encode())
