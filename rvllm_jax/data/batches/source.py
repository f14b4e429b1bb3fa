"""From a folder of videos, or a prepared one, to examples and their frame store."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from absl import logging

from rvllm_jax.data.annotations.example import check_videos
from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.prepare.folder import FRAMES, INFO
from rvllm_jax.data.shapes import build
from rvllm_jax.data.store.reader import FrameStore, check_share
from rvllm_jax.data.store.shards import INDEX, StoreOptions
from rvllm_jax.data.store.writer import holds, write_store
from rvllm_jax.system.atomic import read_json_or_empty
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import json_digest
from rvllm_jax.system.lock import LOCK
from rvllm_jax.types import Example

EMBEDDED = "shapes"  # the value of config.data.videos that asks for the embedded dataset
Progress = Callable[[int, int], None]


class SourceError(RvllmError, ValueError):
    """Annotations that cannot be used with their videos; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Annotations by split, and the frames that they name.

    `set_aside` names the videos that did not decode and why; their examples are in no split.
    `origins` holds what the preparation recorded of each split, where there was one: among others
    "split" and "partial", without which no number measured on it can be compared.
    """

    splits: dict[str, list[Example]]
    store: FrameStore
    set_aside: dict[str, str]
    origins: dict[str, dict] = dataclasses.field(default_factory=dict)


def open_data(
    videos: str,
    annotations: dict[str, str],
    options: StoreOptions,
    *,
    root: str | Path,
    max_bad: float,
    workers: int,
    progress: Callable[[str], Progress] | None = None,
) -> TrainingData:
    """Reads the annotations, and stores the frames of their videos under `root` unless they are.

    `videos` is a folder, or "shapes" for the embedded dataset, which is rendered first. A folder
    that `rvllm_jax.prepare` made is read as it is: its frames must be stored as `options` say.
    `annotations` maps a split ("train", "validation", "test") to a LLaVA JSON file; empty paths
    are left out. `progress(title)` returns the callback of one part of the work. Raises where a
    file is missing or wrong, or more than the share `max_bad` of the videos does not decode.
    """
    progress = progress or (lambda title: lambda done, total: None)
    root = Path(root)
    if videos == EMBEDDED:
        folder = root / EMBEDDED / "videos"
        if not folder.is_dir():
            logging.info(
                "the embedded dataset is rendered to %s first, once (config.data.videos=%r; name a "
                "folder of videos there to use your own)", folder.parent, EMBEDDED,
            )  # fmt: skip
        paths = build.build(folder.parent, workers=workers, progress=progress("render"))
    else:
        folder = Path(videos)
        paths = {split: Path(path) for split, path in annotations.items() if path}
    splits = {split: read_llava(path) for split, path in paths.items()}
    if (folder / FRAMES / LOCK).is_file():
        store = _open_prepared(folder, splits, paths, options)
    else:
        for examples in splits.values():
            check_videos(examples, folder)
        store = _open_store(folder, splits, root, options, workers, progress("decode"))
    names = _videos(splits)
    set_aside = {video: store.bad[video] for video in names if video in store.bad}
    check_share(set_aside, len(names), max_bad)
    for name, reason in set_aside.items():
        logging.warning("set aside: %s: %s", name, reason)
    kept = {
        split: [c for c in examples if c.video not in store.bad]
        for split, examples in splits.items()
    }
    for split, examples in kept.items():
        if not examples:
            raise SourceError(
                f"{paths[split]}: none of its {len(splits[split])} examples is left, as its "
                f"videos do not decode: {set_aside}. Replace these videos, or leave out the file"
            )
    return TrainingData(kept, store, set_aside, _origins(paths))


def _videos(splits: dict[str, list[Example]]) -> list[str]:
    return sorted({c.video for examples in splits.values() for c in examples})


def _open_prepared(
    folder: Path,
    splits: dict[str, list[Example]],
    paths: dict[str, Path],
    options: StoreOptions,
) -> FrameStore:
    """The store of a prepared folder, where it is finished and fits configuration and splits."""
    if not (folder / FRAMES / INDEX).is_file():
        raise SourceError(
            f"{folder}: its preparation has not finished; start rvllm_jax.prepare again as before, "
            "it continues"
        )
    store = FrameStore(folder / FRAMES)
    wrong = [
        f"{key} {getattr(store.options, key)}, config.data.{key}={value}"
        for key, value in dataclasses.asdict(options).items()
        if getattr(store.options, key) != value
    ]
    if wrong:
        raise SourceError(
            f"{folder}: prepared otherwise than configured: {'; '.join(wrong)}. Change the "
            "configuration, or prepare the videos again into another folder"
        )
    for split, examples in splits.items():
        known = store.entries.keys() | store.bad.keys()
        lost = sorted({c.video for c in examples} - known)
        if lost:
            raise SourceError(
                f"{paths[split]}: {len(lost)} of its videos are not in the prepared folder "
                f"{folder}, the first {lost[0]!r}; prepare this split into it, and use the file "
                "that the preparation writes there"
            )
    return store


def _origins(paths: dict[str, Path]) -> dict[str, dict]:
    """What a preparation recorded beside its annotation files, without the list of files."""
    infos = {split: read_json_or_empty(path.with_suffix(INFO)) for split, path in paths.items()}
    return {
        split: {key: value for key, value in info.items() if key != "files"}
        for split, info in infos.items()
        if info
    }


def _open_store(
    folder: Path, splits: dict, root: Path, options: StoreOptions, workers: int, progress
):
    """The store of these videos and options in `root`, or one that has them among others.

    One for each folder, set of videos and options: a run that is under way keeps the one it reads.
    """
    videos = {name: folder / name for name in _videos(splits)}
    content = [str(folder.resolve()), list(videos), dataclasses.asdict(options)]
    store = root / f"frames-{json_digest(content, sort_keys=True, length=12)}"
    for other in sorted(root.glob("frames-*")):
        if not store.exists() and holds(other, videos, options):
            return FrameStore(other)
    return write_store(store, videos, options, workers=workers, progress=progress)
