"""From a folder of videos, or a prepared one, to examples and their frame store."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from absl import logging

from rvllm_jax.data.annotations.example import check_videos
from rvllm_jax.data.annotations.llava import INFO, read_info
from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.store.reader import FrameStore, check_share
from rvllm_jax.data.store.shards import FRAMES, INDEX, StoreOptions
from rvllm_jax.data.store.writer import holds, write_store
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import json_digest
from rvllm_jax.system.lock import LOCK
from rvllm_jax.types import Example

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
    videos: str | Path,
    annotations: Mapping[str, str | Path],
    options: StoreOptions,
    *,
    root: str | Path,
    max_bad: float,
    workers: int,
    progress: Callable[[str], Progress] | None = None,
) -> TrainingData:
    """Reads the annotations, and stores the frames of their videos under `root` unless they are.

    A folder of videos that `rvllm_jax.prepare` made is read as it is: its frames must be stored as
    `options` say. `annotations` maps a split ("train", "validation", "test") to a LLaVA JSON file;
    empty paths are left out. `progress(title)` returns the callback of one part of the work. Raises
    where a file is missing or wrong, or more than a share `max_bad` of the videos does not decode.
    """
    folder = Path(videos)
    paths = {split: Path(path) for split, path in annotations.items() if path}
    splits = {split: read_llava(path) for split, path in paths.items()}
    names = sorted({example.video for examples in splits.values() for example in examples})
    if (folder / FRAMES / LOCK).is_file():
        store = _open_prepared(folder, options)
        for split, examples in splits.items():
            _check_prepared(store, examples, paths[split], folder)
    else:
        for examples in splits.values():
            check_videos(examples, folder)
        report = progress("decode") if progress else None
        store = _open_store(folder, names, Path(root), options, workers, report)
    set_aside = {video: store.bad[video] for video in names if video in store.bad}
    check_share(set_aside, len(names), max_bad)
    for name, reason in set_aside.items():
        logging.warning("set aside: %s: %s", name, reason)
    kept, origins = {}, {}
    for split, examples in splits.items():
        kept[split] = [example for example in examples if example.video not in store.bad]
        if not kept[split]:
            raise SourceError(
                f"{paths[split]}: none of its {len(examples)} examples is left, as its videos do "
                f"not decode: {set_aside}. Replace these videos, or leave out the file"
            )
        if info := read_info(paths[split].with_suffix(INFO)):
            info.pop("files", None)
            origins[split] = info
    return TrainingData(kept, store, set_aside, origins)


def _open_prepared(folder: Path, options: StoreOptions) -> FrameStore:
    """The store of a prepared folder, where it is finished and as configured."""
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
    return store


def _check_prepared(store: FrameStore, examples: Iterable[Example], path: Path, folder: Path):
    known = store.entries.keys() | store.bad.keys()
    if lost := sorted({example.video for example in examples} - known):
        raise SourceError(
            f"{path}: {len(lost)} of its videos are not in the prepared folder {folder}, the first "
            f"{lost[0]!r}; prepare this split into it, and use the file that the preparation "
            "writes there"
        )


def _open_store(
    folder: Path, names: list[str], root: Path, options: StoreOptions, workers: int, progress
) -> FrameStore:
    """The store of these videos and options in `root`, or one that has them among others.

    One for each folder, set of videos and options: a run that is under way keeps the one it reads.
    """
    videos = {name: folder / name for name in names}
    content = [str(folder.resolve()), names, dataclasses.asdict(options)]
    store = root / f"frames-{json_digest(content, sort_keys=True, length=12)}"
    for other in sorted(root.glob("frames-*")):
        if not store.exists() and holds(other, videos, options):
            return FrameStore(other)
    return write_store(store, videos, options, workers=workers, progress=progress)
