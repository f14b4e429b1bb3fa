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


class SourceError(ValueError):
    """Annotations that cannot be used with their videos; the message says what to do."""


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
    max_bad: float,
    workers: int,
    progress: Callable[[str], Progress] | None = None,
    **options,
) -> Source:
    """Reads the annotations, and stores the frames of their videos under `root` unless they are.

    `videos` is a folder, or "shapes" for the embedded dataset, which is rendered first.
    `annotations` maps a split ("train", "validation", "test") to a LLaVA JSON file; empty paths
    are left out. `progress(title)` returns the callback of one part of the work. `options` are
    those of `write_store`: stride, short_side, encoding, frames_per_record. Raises where a file is
    missing or wrong, or more than the share `max_bad` of the videos does not decode.
    """
    progress = progress or (lambda title: lambda done, total: None)
    root = Path(root)
    if videos == EMBEDDED:
        folder = root / EMBEDDED / "videos"
        paths = shapes.build(folder.parent, workers=workers, progress=progress("render"))
    else:
        folder = Path(videos)
        paths = {split: Path(path) for split, path in annotations.items() if path}
    splits = {split: read_llava(path) for split, path in paths.items()}
    for conversations in splits.values():
        check_videos(conversations, folder)
    store = _open_store(folder, splits, root, options, workers, progress("decode"))
    check_share(store, max_bad)
    for name, reason in store.bad.items():
        logging.warning("set aside: %s: %s", name, reason)
    kept = {
        split: [c for c in conversations if c.video not in store.bad]
        for split, conversations in splits.items()
    }
    for split, conversations in kept.items():
        if not conversations:
            raise SourceError(
                f"{paths[split]}: none of its {len(splits[split])} conversations is left, as its "
                f"videos do not decode: {store.bad}. Replace these videos, or leave out the file"
            )
    return Source(kept, store, dict(store.bad))


def _open_store(folder: Path, splits: dict, root: Path, options: dict, workers: int, progress):
    """One store for each folder, set of videos and options, so that several may stand in `root`."""
    names = sorted({c.video for conversations in splits.values() for c in conversations})
    where = json.dumps([str(folder.resolve()), names, options], sort_keys=True)
    store = root / f"frames-{hashlib.sha256(where.encode()).hexdigest()[:12]}"
    videos = {name: folder / name for name in names}
    write_store(store, videos, workers=workers, progress=progress, **options)
    return FrameStore(store)
