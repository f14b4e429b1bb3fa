"""Preparing a frame store: which videos go to which shard, what is there already, and the index."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from absl import logging

from rvllm_jax.data import records
from rvllm_jax.data.shards import (
    INDEX,
    LOCK,
    FrameStoreError,
    Options,
    Task,
    VideoEntry,
    done_file,
    read_json,
    record_file,
    times_file,
    write_all,
    write_atomically,
)

_OURS = re.compile(
    r"(frames-videos\.array_record|times|shard)-\d{5}-of-\d{5}(\.f64|\.json)?(\.tmp)?"
    r"|index\.json(\.tmp)?|lock"
)
_NAMED = 10  # how many files a message names


@dataclasses.dataclass(frozen=True)
class StoreReport:
    """What a store holds: videos and frames stored, their bytes, and videos set aside, and why."""

    videos: int
    frames: int
    bytes: int
    bad: dict[str, str]


def write_store(
    folder: str | Path,
    videos: Mapping[str, str | Path],
    *,
    stride: int = 1,
    short_side: int | None = 256,
    encoding: str = "raw",
    frames_per_record: int = 8,
    shards: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> StoreReport:
    """Decodes `videos` into `folder`, or returns at once where that is done already.

    A store of the same options and videos (names, sizes, modification times) is reused, whole or by
    shard; one of others is written anew. One preparation a folder at a time: a second one waits.

    Args:
        folder: made if absent; may hold nothing but a store.
        videos: the name by which a video is read later -> its file.
        stride: every stride-th frame is stored.
        short_side: pixels of the shorter side of a stored frame; None keeps the file's size.
        encoding: "raw" (exact, h * w * 3 bytes a frame) or "jpeg" (about a tenth of it).
        frames_per_record: frames read together; a window touches at most one record more.
        shards: number of files; by default one a video up to 16, then one in 128 videos.
        workers: processes that decode; 0 decodes in this one.
        progress: called with (videos done, all videos) after each shard.

    Returns:
        What is stored, and the videos that were set aside because they do not decode.

    Raises:
        FrameStoreError: the folder holds other files, or cannot be written (disk full).
    """
    folder = Path(folder)
    names = sorted(videos)
    if shards is None:
        shards = max(16, -(-len(names) // 128))
    numbers = (len(names), stride, short_side or 1, frames_per_record, shards)
    if min(numbers) < 1 or encoding not in records.ENCODINGS:
        raise ValueError(
            f"a frame store takes at least one video, numbers of at least 1 and an encoding of "
            f"{records.ENCODINGS}; got {len(names)} videos, stride={stride}, short_side="
            f"{short_side}, frames_per_record={frames_per_record}, shards={shards}, {encoding=}"
        )
    options = Options(stride, short_side, encoding, frames_per_record, min(shards, len(names)))
    with _locked(folder):
        tasks = _plan(folder, [(name, Path(videos[name])) for name in names], options)
        done = _finished(folder, tasks)
        index = read_json(folder / INDEX)
        if len(done) < len(tasks) or index.get("fingerprint") != tasks[0].fingerprint:
            done = _write(folder, tasks, done, workers, progress)
            index = _write_index(folder, tasks[0], done)
    return _report(index)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second preparation of the folder waiting, until this process ends at the latest."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")
    except OSError as error:
        raise FrameStoreError(
            f"{folder}: cannot be written ({error}); choose another folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _plan(folder: Path, videos: list[tuple[str, Path]], options: Options) -> list[Task]:
    """The shards to write: runs of the sorted videos, as even as can be."""
    seen = [records.LAYOUT, dataclasses.asdict(options)]
    for name, path in videos:
        try:
            status = path.stat()
            seen.append([name, status.st_size, status.st_mtime_ns])
        except OSError:
            seen.append([name, None, None])  # the decoder will say why
    fingerprint = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    bounds = [len(videos) * shard // options.shards for shard in range(options.shards + 1)]
    return [
        Task(folder, shard, videos[bounds[shard] : bounds[shard + 1]], options, fingerprint)
        for shard in range(options.shards)
    ]


def _finished(folder: Path, tasks: list[Task]) -> dict[int, dict]:
    """The summaries of the shards that are there, whole, and of these videos and options."""
    found = {}
    for task in tasks:
        names = [make(task.shard, len(tasks)) for make in (done_file, record_file, times_file)]
        done, *paths = (folder / name for name in names)
        summary = read_json(done)
        if summary.get("fingerprint") == task.fingerprint and all(p.is_file() for p in paths):
            if paths[0].stat().st_size == summary["bytes"]:
                found[task.shard] = summary
    return found


def _write(
    folder: Path,
    tasks: list[Task],
    done: dict[int, dict],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[int, dict]:
    """Writes the shards that are not `done` yet, after clearing away what is of no use."""
    present = [path for path in folder.iterdir() if path.name != LOCK]
    foreign = sorted(path.name for path in present if not _OURS.fullmatch(path.name))
    if foreign:
        raise FrameStoreError(
            f"{folder}: holds other files than a frame store ({', '.join(foreign[:_NAMED])}); "
            "choose another folder for the frames"
        )
    (folder / INDEX).unlink(missing_ok=True)  # first: an index never names what is gone
    if present and not done:
        logging.warning(
            "%s: holds a store of other videos or options, or no finished shard; written anew",
            folder,
        )
    makers = (done_file, record_file, times_file)
    kept = {make(shard, len(tasks)) for make in makers for shard in done}
    for path in present:
        if path.name not in kept:
            path.unlink(missing_ok=True)
    total = sum(len(task.videos) for task in tasks)
    finished = sum(len(task.videos) for task in tasks if task.shard in done)
    done = dict(done)
    for summary in write_all([task for task in tasks if task.shard not in done], workers):
        done[summary["shard"]] = summary
        finished += len(tasks[summary["shard"]].videos)
        if progress is not None:
            progress(finished, total)
    return done


def _write_index(folder: Path, task: Task, done: dict[int, dict]) -> dict:
    summaries = [done[shard] for shard in sorted(done)]
    index = {
        "layout": records.LAYOUT,
        "fingerprint": task.fingerprint,
        "options": dataclasses.asdict(task.options),
        "shards": [{key: summary[key] for key in ("bytes", "times_crc")} for summary in summaries],
        "entries": {name: row for summary in summaries for name, row in summary["entries"].items()},
        "bad": {name: why for summary in summaries for name, why in summary["bad"].items()},
    }
    write_atomically(folder / INDEX, json.dumps(index).encode())
    return index


def _report(index: dict) -> StoreReport:
    return StoreReport(
        videos=len(index["entries"]),
        frames=sum(VideoEntry(*row).num_frames for row in index["entries"].values()),
        bytes=sum(shard["bytes"] for shard in index["shards"]),
        bad=index["bad"],
    )
