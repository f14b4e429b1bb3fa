"""Preparing a frame store: which videos go to which shard, what is there already, and the index."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from absl import logging

from rvllm_jax.data.store import record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shard_writer import write_shard, write_shards
from rvllm_jax.data.store.shards import (
    ASIDE,
    DONE,
    INDEX,
    MIN_DECODED,
    RECORDS,
    TIMES,
    FrameStoreError,
    StoreOptions,
    Task,
    read_aside,
    shard_file,
    stamp,
    write_store_json,
)
from rvllm_jax.system.atomic import read_json_or_empty
from rvllm_jax.system.file_layout import STORE
from rvllm_jax.system.fingerprint import digest, json_digest
from rvllm_jax.system.lock import LOCK, locked
from rvllm_jax.system.progress import VideosDone

_OURS = re.compile(
    r"journal-\d{5}-of-\d{5}-[0-9a-f]{0,16}"
    r"|(frames-videos\.array_record|times|shard|aside)-\d{5}-of-\d{5}(\.f64|\.json)?(\.tmp)?"
    r"|(index|features|dataset_info)\.json(\.tmp)?|lock"
)
_DECODER = 3  # part of every fingerprint: raised when the same file gives another shard
_NAMED = 10  # how many files a message names


def write_store(
    folder: str | Path,
    videos: Mapping[str, str | Path],
    options: StoreOptions,
    *,
    shards: int | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    run_tasks: Callable[[list[Task]], Iterator[dict]] | None = None,
) -> FrameStore:
    """Decodes `videos` into `folder`, or returns at once where that is done already.

    A store of the same options and videos (names, sizes, modification times) is reused, whole or by
    video; one of others is written anew. One preparation a folder at a time: a second one waits.

    Args:
        folder: made if absent; may hold nothing but a store.
        videos: the name by which a video is read later -> its file.
        options: how their frames are stored.
        shards: number of files; by default one a video up to 16, then one in 32 videos.
        workers: processes that decode, watched by this one, to the same bytes for any number; 0
            decodes in this one, where a video that hangs or crashes it takes the preparation along.
        progress: called with (videos done, all videos) as they become more.
        run_tasks: writes shards in place of the local workers, by `write_shards` wherever it likes,
            and yields their summaries.

    Returns:
        The store; its `bad` are the videos that were set aside because they do not decode.

    Raises:
        FrameStoreError: the folder holds other files, or cannot be written (disk full).
    """
    folder, names = Path(folder), sorted(videos)
    if shards is None:
        shards = max(16, -(-len(names) // 32))
    shards = min(shards, len(names))
    _check(options, len(names), shards)
    STORE.check(folder / INDEX, read_json_or_empty(folder / INDEX))
    tasks = plan(folder, videos, options, shards)
    if _is_whole(folder, tasks):
        return FrameStore(folder)
    with locked(folder, wait=logging.warning, advice="name another folder", stays=True):
        if not _is_whole(folder, tasks):  # another process may have written it meanwhile
            done = _finished(tasks)
            finished = sum(len(tasks[shard].videos) for shard in done)
            shown = VideosDone(len(videos), finished, progress)
            run = run_tasks or functools.partial(_run, workers=workers, in_work=shown.in_work)
            done = _write(folder, tasks, done, run, shown)
            _write_index(folder, tasks, done)
    return FrameStore(folder)


def _check(options: StoreOptions, videos: int, shards: int) -> None:
    numbers = videos, shards, options.stride, options.short_side or 1, options.frames_per_record
    if min(numbers) < 1 or options.encoding not in record.ENCODINGS:
        raise ValueError(
            f"a frame store takes at least one video, numbers of at least 1 and an encoding of "
            f"{record.ENCODINGS}; got {videos} videos, {shards} shards and {options}"
        )


def plan(
    folder: Path, videos: Mapping[str, str | Path], options: StoreOptions, shards: int
) -> list[Task]:
    """The shards to write: runs of the sorted videos, as even as can be. See `write_store`."""
    names, tasks = sorted(videos), []
    bounds = [len(names) * shard // shards for shard in range(shards + 1)]
    for shard, (first, last) in enumerate(itertools.pairwise(bounds)):
        run = [(name, Path(videos[name])) for name in names[first:last]]
        task = Task(folder, shard, shards, run, options, "")
        tasks.append(task._replace(fingerprint=_shard_fingerprint(task)))
    return tasks


def _shard_fingerprint(task: Task) -> str:
    """Of what decides the bytes of a shard; the content of a file stands in its size and time."""
    decisive = [record.LAYOUT, _DECODER, _settings(task)]
    decisive += [[name, *stamp(path)] for name, path in task.videos]
    return json_digest(decisive)


def _settings(task: Task) -> dict:
    """What, beside the videos, decides the bytes of a store; as index.json has it."""
    more = {"shards": task.shards, "min_decoded": MIN_DECODED}
    return dataclasses.asdict(task.options) | more


def holds(folder: str | Path, videos: Mapping[str, str | Path], options: StoreOptions) -> bool:
    """Whether a finished store of these options has all these videos, as their files are now.

    It may have others too.
    """
    index = read_json_or_empty(Path(folder) / INDEX)
    if not _fits(index, options):
        return False
    shards, stamps = index["shards"], index["stamps"]
    return all(
        _has_files(Path(folder), number, len(shards), shard["bytes"])
        for number, shard in enumerate(shards)
    ) and all(stamps.get(name) == stamp(Path(path)) for name, path in videos.items())


def holds_only(folder: str | Path, videos: Mapping[str, str | Path], options: StoreOptions) -> bool:
    """Whether a store is of these videos alone, as their files are now; shards may lack.

    `write_store` then writes what lacks in its place, and the other shards stay.
    """
    index = read_json_or_empty(Path(folder) / INDEX)
    stamps = {name: stamp(Path(path)) for name, path in videos.items()}
    return _fits(index, options) and index["stamps"] == stamps


def _fits(index: dict, options: StoreOptions) -> bool:
    """Whether this version writes such an index, and with these options."""
    ours = index.get("layout") == record.LAYOUT and index.get("decoder") == _DECODER
    return ours and StoreOptions.from_index(index) == options


def _fingerprint(tasks: list[Task]) -> str:
    return digest(task.fingerprint for task in tasks)


def _finished(tasks: list[Task]) -> dict[int, dict]:
    """The summaries of the shards that are there, whole, and of these videos and options."""
    summaries = {}
    for task in tasks:
        summary = read_json_or_empty(task.path(DONE))
        if summary.get("fingerprint") == task.fingerprint:
            if _has_files(task.folder, task.shard, task.shards, summary["bytes"]):
                summaries[task.shard] = summary
    return summaries


def _is_whole(folder: Path, tasks: list[Task]) -> bool:
    index = read_json_or_empty(folder / INDEX)
    return index.get("fingerprint") == _fingerprint(tasks) and len(_finished(tasks)) == len(tasks)


def _has_files(folder: Path, shard: int, shards: int, size: int) -> bool:
    """Whether the times of a shard are there, and its records of `size` bytes."""
    records, times = (folder / shard_file(file, shard, shards) for file in (RECORDS, TIMES))
    return times.is_file() and stamp(records)[0] == size


def check_foreign(folder: Path) -> None:
    """Raises `FrameStoreError` where `folder` holds what is no part of a frame store."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    foreign = sorted(name for name in names if not _OURS.fullmatch(name))
    if foreign:
        raise FrameStoreError(
            f"{folder}: holds other files than a frame store ({', '.join(foreign[:_NAMED])}); "
            "choose another folder for the frames"
        )


def _write(
    folder: Path,
    tasks: list[Task],
    done: dict[int, dict],
    run_tasks: Callable[[list[Task]], Iterator[dict]],
    progress: VideosDone,
) -> dict[int, dict]:
    """Writes the shards that are not `done` yet, after clearing away what is of no use."""
    check_foreign(folder)
    present = [path for path in folder.iterdir() if path.name != LOCK]
    unfinished = [task for task in tasks if task.shard not in done]
    kept = {task.path(ASIDE) for task in tasks if read_aside(task)}
    kept |= {task.journal for task in unfinished}
    kept &= set(present)
    if present and not done and not kept:
        logging.warning(
            "%s: holds a store of other videos or options or of an older version, or no finished "
            "shard; written anew",
            folder,
        )
    (folder / INDEX).unlink(missing_ok=True)  # first: an index never names what is gone
    for shard in done:
        kept |= {tasks[shard].path(name) for name in (DONE, RECORDS, TIMES)}
    for path in present:
        if path not in kept:
            path.unlink(missing_ok=True)
    done = dict(done)
    for summary in run_tasks(unfinished):
        done[summary["shard"]] = summary
        progress.finished(len(tasks[summary["shard"]].videos))
    return done


def _run(tasks: list[Task], workers: int, in_work: Callable[[int], None]) -> Iterator[dict]:
    """Writes shards on this machine: by watched processes, or, with 0 workers, in this one."""
    if workers:
        yield from write_shards(tasks, workers, in_work)
        return
    for task in tasks:
        yield write_shard(task, lambda position: in_work(max(0, position)))


def _write_index(folder: Path, tasks: list[Task], done: dict[int, dict]) -> None:
    summaries = [done[shard] for shard in sorted(done)]

    def merged(key: str) -> dict:
        return {name: value for summary in summaries for name, value in summary[key].items()}

    index = {
        "layout": record.LAYOUT,
        "decoder": _DECODER,
        "fingerprint": _fingerprint(tasks),
        "options": _settings(tasks[0]),
        "stamps": {name: stamp(path) for task in tasks for name, path in task.videos},
        "shards": [{key: summary[key] for key in ("bytes", "times_crc")} for summary in summaries],
        **{key: merged(key) for key in ("entries", "bad", "info", "notes")},
    }
    write_store_json(folder / INDEX, index)
