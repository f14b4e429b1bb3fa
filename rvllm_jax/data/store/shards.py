"""The names and bytes of what lies in the folder of a frame store, and what one shard of it is."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rvllm_jax.system import atomic
from rvllm_jax.system.atomic import TEMPORARY, read_json_or_empty
from rvllm_jax.system.errors import RvllmError

INDEX = "index.json"
_AGAIN = (
    "Free some space or choose another folder, then prepare again: it continues behind the videos "
    "that are finished"
)


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
    content = read_json_or_empty(task.folder / aside_file(task.shard, task.options.shards))
    return content["bad"] if content.get("fingerprint") == task.fingerprint else {}


def write_aside(task: Task, bad: dict[str, str]) -> None:
    content = {"fingerprint": task.fingerprint, "bad": bad}
    write_store_json(task.folder / aside_file(task.shard, task.options.shards), content)


def write_store_bytes(path: Path, content: bytes) -> None:
    """Replaces a file of the store; raises StoreWriteError."""
    atomic.write_bytes(path, content, advice=_AGAIN, error=StoreWriteError)


def write_store_json(path: Path, value: dict) -> None:
    """Replaces a file of the store by one line of JSON; raises StoreWriteError."""
    write_store_bytes(path, atomic.dump_json(value, indent=None).encode())


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


def naming(path: Path) -> contextlib.AbstractContextManager[None]:
    """Within it, a failed write raises StoreWriteError, which names `path`.

    RuntimeError counts too: ArrayRecord raises it for a full disk.
    """
    failures = (OSError, RuntimeError)
    return atomic.naming(path, advice=_AGAIN, error=StoreWriteError, failures=failures)


class VideosDone:
    """Tells the caller how many videos are done; the number never falls."""

    def __init__(
        self, tasks: Sequence[Task], done: Iterable[int], report: Callable[[int, int], None] | None
    ):
        self._total = sum(len(task.videos) for task in tasks)
        self._finished = sum(len(task.videos) for task in tasks if task.shard in done)
        self._told = self._finished
        self._report = report or (lambda finished, total: None)

    def finished(self, videos: int) -> None:
        """So many videos more are in shards that are finished."""
        self._finished += videos
        self.in_work(0)

    def in_work(self, videos: int) -> None:
        """So many videos are done of shards in work."""
        if self._finished + videos > self._told:
            self._told = self._finished + videos
            self._report(self._told, self._total)
