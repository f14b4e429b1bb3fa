"""The names and bytes of what lies in the folder of a frame store, and what one shard of it is."""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rvllm_jax.system.errors import RvllmError

INDEX, LOCK, TEMPORARY = "index.json", "lock", ".tmp"


class FrameStoreError(RvllmError):
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
    time_limit: float  # seconds without a new frame; watched by data/store/supervised.py


def record_file(shard: int, shards: int) -> str:
    return f"frames-videos.array_record-{shard:05d}-of-{shards:05d}"


def times_file(shard: int, shards: int) -> str:
    return f"times-{shard:05d}-of-{shards:05d}.f64"


def done_file(shard: int, shards: int) -> str:
    return f"shard-{shard:05d}-of-{shards:05d}.json"


def journal_file(shard: int, shards: int, fingerprint: str) -> str:
    return f"journal-{shard:05d}-of-{shards:05d}-{fingerprint[:16]}"


def aside_file(shard: int, shards: int) -> str:
    return f"aside-{shard:05d}-of-{shards:05d}.json"


def read_aside(task: Task) -> dict[str, str]:
    """The videos of a shard that hung or crashed their process, and why: not to be tried again."""
    content = read_json(task.folder / aside_file(task.shard, task.options.shards))
    return content["bad"] if content.get("fingerprint") == task.fingerprint else {}


def write_aside(task: Task, bad: dict[str, str]) -> None:
    content = json.dumps({"fingerprint": task.fingerprint, "bad": bad}, sort_keys=True)
    write_atomically(task.folder / aside_file(task.shard, task.options.shards), content.encode())


def write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with naming(path):
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


def stamp(path: Path) -> list[int | None]:
    """Size and time of a file, which stand for its content; [None, None] where there is none."""
    try:
        status = path.stat()
    except OSError:
        return [None, None]  # the decoder will say why
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file that could not be written; ArrayRecord raises RuntimeError for a full disk."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise StoreWriteError(
            f"{path}: cannot be written ({error}), with {_room(path.parent)}. Free some space or "
            "choose another folder, then prepare again: it continues behind the videos that are "
            "finished"
        ) from error


def _room(folder: Path) -> str:
    """What a file in `folder` may take."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = "" if limit == resource.RLIM_INFINITY else f", {limit:,} allowed a file (ulimit -f)"
    return f"{shutil.disk_usage(folder).free:,} bytes free in {folder}{files}"
