"""Writing one shard of the frame store, and the names and bytes of what lies in its folder.

Shards are the unit of work: each is written by one process, from videos that the plan in
`data/frame_writer.py` gives it, under temporary names and renamed when whole.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module

from rvllm_jax.data import records, video

INDEX, LOCK, TEMPORARY = "index.json", "lock", ".tmp"
# One record a chunk, so that a record is read without its neighbours. Neither noise-like raw
# frames nor JPEG gain from compression what it costs at each read.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class FrameStoreError(Exception):
    """A store that cannot be written or read: its path, what is wrong and what to do."""


class VideoEntry(NamedTuple):
    """Where a video lies in the store, and what is known of it."""

    shard: int
    first_record: int  # its records follow each other in the shard
    num_records: int
    num_frames: int  # stored frames, one in `stride` of the file's
    height: int
    width: int
    stride: int
    fps: float  # stored frames a second, on average; 0 for a single frame
    first_time: int  # where its times begin among the shard's


@dataclasses.dataclass(frozen=True)
class Options:
    """What, beside the videos, decides the bytes of a store."""

    stride: int
    short_side: int | None
    encoding: str
    frames_per_record: int
    shards: int


class Task(NamedTuple):
    """One shard to write, complete: it crosses to another process."""

    folder: Path
    shard: int
    videos: list[tuple[str, Path]]
    options: Options
    fingerprint: str


def record_file(shard: int, shards: int) -> str:
    return f"frames-videos.array_record-{shard:05d}-of-{shards:05d}"


def times_file(shard: int, shards: int) -> str:
    return f"times-{shard:05d}-of-{shards:05d}.f64"


def done_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.json"


def write_all(tasks: Sequence[Task], workers: int) -> Iterator[dict]:
    """Yields the summary of each shard when it is finished, in any order."""
    if workers == 0 or len(tasks) < 2:
        yield from map(write_shard, tasks)
        return
    # Spawned, not forked: the parent may hold JAX's threads and devices.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _end_with_parent) as pool:
        pending = [pool.submit(write_shard, task) for task in tasks]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool as error:
            raise FrameStoreError(
                f"{tasks[0].folder}: a process that decodes videos was killed (memory, or a video "
                "that crashes the decoder). Prepare again: finished shards are kept; with "
                "workers=0 the video that fails is the one in work"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_shard(task: Task) -> dict:
    """Writes the records and times of a shard; returns, and stores, the summary of it."""
    names = [name(task.shard, task.options.shards) for name in (record_file, times_file, done_file)]
    shard_path, times_path, done_path = (task.folder / name for name in names)
    temporary = shard_path.with_name(shard_path.name + TEMPORARY)
    entries: dict[str, VideoEntry] = {}
    bad: dict[str, str] = {}
    times: list[float] = []
    num_records = 0
    with _writer(temporary) as writer:
        for name, path in task.videos:
            # A video may fail behind its first records: they stay, but no entry names them.
            entry = VideoEntry(task.shard, num_records, 0, 0, 0, 0, 0, 0.0, len(times))
            try:
                for record, shown, (height, width) in _records(name, path, task.options):
                    _write_record(writer, record, temporary)
                    num_records += 1
                    times += shown
                    entry = entry._replace(height=height, width=width)
            except video.VideoError as error:
                bad[name] = str(error)
                continue
            shown = times[entry.first_time :]
            span = shown[-1] - shown[0]
            entries[name] = entry._replace(
                num_records=num_records - entry.first_record,
                num_frames=len(shown),
                stride=task.options.stride,
                fps=(len(shown) - 1) / span if span > 0 else 0.0,
            )
    os.replace(temporary, shard_path)
    content = np.asarray(times, "<f8").tobytes()
    write_atomically(times_path, content)
    done = {
        "fingerprint": task.fingerprint,
        "shard": task.shard,
        "bytes": shard_path.stat().st_size,
        "times_crc": zlib.crc32(content),
        "entries": entries,
        "bad": bad,
    }
    write_atomically(done_path, json.dumps(done).encode())
    return done


def _records(
    name: str, path: Path, options: Options
) -> Iterator[tuple[bytes, list[float], tuple[int, int]]]:
    """The records of a video, each with its frames' times and (height, width).

    Holds one record's frames at a time, so that memory does not depend on the video's length.
    """
    buffer, times, first = None, [], 0
    size = (0, 0)
    for frame, seconds in video.decode(path, stride=options.stride, short_side=options.short_side):
        if buffer is None:
            size = frame.shape[:2]
            buffer = np.empty((options.frames_per_record, *frame.shape), np.uint8)
        buffer[len(times)] = frame
        times.append(seconds)
        if len(times) == options.frames_per_record:
            yield records.pack(name, first, times, buffer, options.encoding), times, size
            first, times = first + len(times), []
    if times:
        frames = buffer[: len(times)]
        yield records.pack(name, first, times, frames, options.encoding), times, size
    elif first == 0:
        raise video.VideoError(f"{path}: no frame decodes; replace the file")


@contextlib.contextmanager
def _writer(temporary: Path) -> Iterator[array_record_module.ArrayRecordWriter]:
    """An open ArrayRecord writer; leaves no half shard behind where something fails."""
    try:
        with _naming(temporary):
            writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()  # its thread must not write on
            raise
        with _naming(temporary):
            writer.close()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_record(writer: array_record_module.ArrayRecordWriter, data: bytes, path: Path) -> None:
    with _naming(path):
        writer.write(data)


def write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with _naming(path):
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """What `path` holds; nothing, where it is absent or broken."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file that could not be written; ArrayRecord raises RuntimeError for a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise FrameStoreError(
            f"{path}: cannot be written ({error}). Free some space or choose another folder, then "
            "prepare again: it continues behind the shards that are finished"
        ) from error


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed: nobody is left to tell it that its work is over."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
