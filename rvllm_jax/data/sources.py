"""From a folder of videos and its annotation files to conversations and their frame store."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from absl import logging

from rvllm_jax.data import shapes
from rvllm_jax.data.conversations import Conversation, check_videos, read_llava
from rvllm_jax.data.frames import FrameStore, check_share, write_store

EMBEDDED = "shapes"  # the value of config.data.videos that asks for the embedded dataset
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Source:
    """Annotations by split, and the frames that they name.

    `set_aside` names the videos that did not decode and why; their conversations are in no split.
    """

    splits: dict[str, list[Conversation]]
    store: FrameStore
    set_aside: dict[str, str]


def open_source(
    videos: str,
    annotations: dict[str, str],
    *,
    root: str | Path,
    stride: int,
    short_side: int,
    encoding: str,
    frames_per_record: int,
    max_bad: float,
    workers: int,
    progress: Callable[[str], Progress] | None = None,
) -> Source:
    """Reads the annotations, and stores the frames of their videos under `root` unless they are.

    `videos` is a folder, or "shapes" for the embedded dataset, which is rendered first.
    `annotations` maps a split ("train", "validation", "test") to a LLaVA JSON file; empty paths
    are left out. `progress(title)` returns the callback of one part of the work. Raises where a
    file is missing or wrong, or more than the share `max_bad` of the videos does not decode.
    """
    progress = progress or (lambda title: lambda done, total: None)
    root = Path(root)
    if videos == EMBEDDED:
        folder = root / EMBEDDED
        paths = shapes.build(folder, workers=workers, progress=progress("render"))
        folder = folder / "videos"
    else:
        folder = Path(videos)
        paths = {split: Path(path) for split, path in annotations.items() if path}
    splits = {split: read_llava(path) for split, path in paths.items()}
    for conversations in splits.values():
        check_videos(conversations, folder)
    names = sorted({c.video for conversations in splits.values() for c in conversations})
    options = dict(
        stride=stride,
        short_side=short_side,
        encoding=encoding,
        frames_per_record=frames_per_record,
    )
    where = json.dumps([str(folder.resolve()), names, options], sort_keys=True)
    store_folder = root / f"frames-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
    write_store(
        store_folder,
        {name: folder / name for name in names},
        workers=workers,
        progress=progress("decode"),
        **options,
    )
    store = FrameStore(store_folder)
    check_share(store, max_bad)
    for name, reason in store.bad.items():
        logging.warning("set aside: %s: %s", name, reason)
    kept = {
        split: [c for c in conversations if c.video not in store.bad]
        for split, conversations in splits.items()
    }
    return Source(kept, store, dict(store.bad))
