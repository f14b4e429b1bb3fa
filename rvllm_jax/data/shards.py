"""Writing one shard of the frame store, and the names and bytes of what lies in its folder.

Shards are the unit of work: each is written by one process, from videos that the plan in
`data/frame_writer.py` gives it, under temporary names and renamed when whole.
"""

import array
import contextlib
import dataclasses
import functools
import json
import os
import resource
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python import array_record_module

from rvllm_jax.data import records, video

INDEX, LOCK, TEMPORARY = "index.json", "lock", ".tmp"
# One record a chunk, so that a record is read without its neighbours. Neither noise-like raw
# frames nor JPEG gain from compression what it costs at each read.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_MAX_RECORD = 1 << 30  # bytes of its frames
_SMALLER = "Store smaller frames (short_side) or fewer a record, or remove the video"


class FrameStoreError(Exception):
    """A store that cannot be written or read: its path, what is wrong and what to do."""


class StoreWriteError(FrameStoreError):
    """A store that its folder does not take: no room, or no permission."""


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
    file_crc: int  # CRC-32 of the file that it was decoded from


@dataclasses.dataclass(frozen=True)
class Options:
    """What, beside the videos, decides the bytes of a store."""

    stride: int
    short_side: int | None
    encoding: str
    frames_per_record: int
    shards: int
    min_decoded: float = 0.5  # share of the declared length that must come out of a damaged file


class Task(NamedTuple):
    """One shard to write, complete: it crosses to another process."""

    folder: Path
    shard: int
    videos: list[tuple[str, Path]]
    options: Options
    fingerprint: str  # of the options and of these videos
    time_limit: float  # seconds without a new frame; watched by data/supervised.py


def record_file(shard: int, shards: int) -> str:
    return f"frames-videos.array_record-{shard:05d}-of-{shards:05d}"


def times_file(shard: int, shards: int) -> str:
    return f"times-{shard:05d}-of-{shards:05d}.f64"


def done_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.json"


def aside_file(shard: int, shards: int) -> str:
    return f"aside-{shard:05d}-of-{shards:05d}.json"


def read_aside(task: Task) -> dict[str, str]:
    """The videos of a shard that hung or crashed their process, and why: not to be tried again."""
    content = read_json(task.folder / aside_file(task.shard, task.options.shards))
    return content["bad"] if content.get("fingerprint") == task.fingerprint else {}


def write_aside(task: Task, bad: dict[str, str]) -> None:
    content = json.dumps({"fingerprint": task.fingerprint, "bad": bad}, sort_keys=True)
    write_atomically(task.folder / aside_file(task.shard, task.options.shards), content.encode())


def write_shard(task: Task, beat: Callable[[int], None] = lambda position: None) -> dict:
    """Writes the records and times of a shard in this process; returns, and stores, its summary.

    `beat` is called with the position of the video in work before it and after each of its frames,
    and with -1 behind the last video.
    """
    names = [name(task.shard, task.options.shards) for name in (record_file, times_file, done_file)]
    shard_path, times_path, done_path = (task.folder / name for name in names)
    temporary = shard_path.with_name(shard_path.name + TEMPORARY)
    aside = read_aside(task)
    with _writer(temporary) as writer:
        shard = _Shard(task, writer, temporary)
        for position, (name, path) in enumerate(task.videos):
            beat(position)
            if name in aside:
                shard.bad[name] = aside[name]
            else:
                shard.add(name, path, functools.partial(beat, position))
        beat(-1)
    os.replace(temporary, shard_path)
    content = np.asarray(shard.times, "<f8").tobytes()
    write_atomically(times_path, content)
    done = {
        "fingerprint": task.fingerprint,
        "shard": task.shard,
        "bytes": shard_path.stat().st_size,
        "times_crc": zlib.crc32(content),
        "entries": shard.entries,
        "bad": shard.bad,
        "info": shard.info,
        "notes": shard.notes,
    }
    write_atomically(done_path, json.dumps(done).encode())
    return done


class _Shard:
    """A shard in work: what is written of it, and what is known of its videos.

    Holds one record's frames at a time, so that memory does not depend on the videos' length.
    """

    def __init__(self, task: Task, writer: array_record_module.ArrayRecordWriter, path: Path):
        self.entries: dict[str, VideoEntry] = {}
        self.bad: dict[str, str] = {}
        self.info: dict[str, video.VideoInfo] = {}
        self.notes: dict[str, str] = {}
        self.times = array.array("d")  # seconds
        self._shard, self._options, self._writer, self._path = (
            task.shard, task.options, writer, path,
        )  # fmt: skip
        self._records = 0

    def add(self, name: str, path: Path, on_frame: Callable[[], None]) -> None:
        """Writes a video, or names it in `bad`."""
        options = self._options
        decoding = video.Decoding(
            path,
            stride=options.stride,
            short_side=options.short_side,
            min_decoded=options.min_decoded,
            on_frame=on_frame,
        )
        # A video may fail behind its first records: they stay, but no entry names them.
        first_record, first_time = self._records, len(self.times)
        try:
            height, width = self._write(name, path, decoding)
        except video.VideoError as error:
            self.bad[name] = str(error)
        except MemoryError:
            self.bad[name] = f"{path}: its frames take too much memory. {_SMALLER}"
        else:
            shown = self.times[first_time:]
            span = shown[-1] - shown[0]
            self.entries[name] = VideoEntry(
                shard=self._shard,
                first_record=first_record,
                num_records=self._records - first_record,
                num_frames=len(shown),
                height=height,
                width=width,
                stride=options.stride,
                fps=(len(shown) - 1) / span if span > 0 else 0.0,
                first_time=first_time,
                file_crc=_crc(path),
            )
            if decoding.note:
                self.notes[name] = decoding.note
        if decoding.info is not None:
            self.info[name] = decoding.info

    def _write(self, name: str, path: Path, decoding: video.Decoding) -> tuple[int, int]:
        """Writes all records of a video; returns (height, width) of its frames."""
        per_record, encoding = self._options.frames_per_record, self._options.encoding
        buffer, filled, first = None, 0, 0
        for frame, seconds in decoding:
            if buffer is None:
                if frame.size * per_record > _MAX_RECORD:
                    raise video.VideoError(
                        f"{path}: {per_record} frames of {frame.shape[1]} x {frame.shape[0]} "
                        f"pixels are no record of at most {_MAX_RECORD:,} bytes. {_SMALLER}"
                    )
                buffer = np.empty((per_record, *frame.shape), np.uint8)
            buffer[filled] = frame
            self.times.append(seconds)
            filled += 1
            if filled == per_record:
                self._write_record(name, first, buffer, encoding)
                first, filled = first + filled, 0
        if filled:
            self._write_record(name, first, buffer[:filled], encoding)
        return buffer.shape[1:3]

    def _write_record(self, name: str, first: int, frames: np.ndarray, encoding: str) -> None:
        data = records.pack(name, first, self.times[-len(frames) :], frames, encoding)
        with _naming(self._path):
            self._writer.write(data)
        self._records += 1


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


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


def remove_temporaries(task: Task) -> None:
    """Removes what a process that was ended amid a shard has left of it."""
    for make in (record_file, times_file, done_file, aside_file):
        name = make(task.shard, task.options.shards) + TEMPORARY
        (task.folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file that could not be written; ArrayRecord raises RuntimeError for a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StoreWriteError(
            f"{path}: cannot be written ({error}), with {_room(path.parent)}. Free some space or "
            "choose another folder, then prepare again: it continues behind the shards that are "
            "finished"
        ) from error


def _room(folder: Path) -> str:
    """What a file in `folder` may take."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = "" if limit == resource.RLIM_INFINITY else f", {limit:,} allowed a file (ulimit -f)"
    return f"{shutil.disk_usage(folder).free:,} bytes free in {folder}{files}"
