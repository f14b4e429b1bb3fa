"""What lies in the folder of a frame store: every video once, at every `stride`-th frame.

    frames-videos.array_record-00000-of-00016   records of a few frames each (record.py)
    times-00000-of-00016.f64                    float64 seconds of every frame of the shard
    ...                                         the other shards; a video is in one of them
    index.json                                  name of a video -> `VideoEntry`; written last
    features.json, dataset_info.json            for tfds.data_source (metadata.py)
    lock                                        held by the preparation

    while a shard is in work, or finished and the index is not written yet:

    journal-00000-of-00016-FINGERPRINT          the videos that are done (journal.py)
    aside-00000-of-00016.json                   those that hung or crashed the decoder, and why
    shard-00000-of-00016.json                   its part of the index: this shard is finished

Shards and their bytes depend on the videos and the options alone, so that any number of worker
processes writes the same files, and a preparation that was killed continues behind the last video.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from rvllm_jax.system import atomic
from rvllm_jax.system.atomic import TEMPORARY, read_json_or_empty
from rvllm_jax.system.errors import AGAIN, RvllmError

INDEX = "index.json"
RECORDS, TIMES = "frames-videos.array_record-{}", "times-{}.f64"  # of each shard, by its number
DONE, ASIDE = "shard-{}.json", "aside-{}.json"
MIN_DECODED = 0.5  # share of its declared length that must come out of a damaged or cut video
TIME_LIMIT = 60.0  # seconds without a new frame after which a worker's video is set aside
FRAMES = "frames"  # the store in the folder of a preparation
# main writes stores too, not prepare alone
_AGAIN = f"{AGAIN}: it continues behind the videos that are finished"


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
class StoreOptions:
    """How the frames of videos are stored.

    Attributes:
        stride: every stride-th frame is stored.
        short_side: pixels of the shorter side of a stored frame; None keeps the file's size.
        encoding: "raw" (exact, h * w * 3 bytes a frame) or "jpeg" (about a tenth of it).
        frames_per_record: frames read together; a clip touches at most one record more.
    """

    stride: int = 1
    short_side: int | None = 256
    encoding: str = "raw"
    frames_per_record: int = 8

    @classmethod
    def from_index(cls, index: dict) -> "StoreOptions":
        """Those of a finished store. Raises KeyError where `index` lacks them."""
        return cls(
            **{field.name: index["options"][field.name] for field in dataclasses.fields(cls)}
        )


class Task(NamedTuple):
    """One shard to write, complete: it crosses to another process."""

    folder: Path
    shard: int
    shards: int  # of the whole store
    videos: list[tuple[str, Path]]
    options: StoreOptions
    fingerprint: str  # of all that decides the bytes of the shard

    def path(self, file: str) -> Path:
        """Where a file of this shard lies; file: RECORDS, TIMES, DONE or ASIDE."""
        return self.folder / shard_file(file, self.shard, self.shards)

    @property
    def journal(self) -> Path:
        """Where what is done of this shard is kept while it is in work."""
        return self.path(f"journal-{{}}-{self.fingerprint[:16]}")


def shard_file(file: str, shard: int, shards: int) -> str:
    """The name of a file of shard number `shard`; file: RECORDS, TIMES, DONE or ASIDE."""
    return file.format(f"{shard:05d}-of-{shards:05d}")


def read_aside(task: Task) -> dict[str, str]:
    """The videos of a shard that hung or crashed their process, and why: not to be tried again."""
    content = read_json_or_empty(task.path(ASIDE))
    return content["bad"] if content.get("fingerprint") == task.fingerprint else {}


def write_aside(task: Task, bad: dict[str, str]) -> None:
    content = {"bad": dict(sorted(bad.items())), "fingerprint": task.fingerprint}
    write_store_json(task.path(ASIDE), content)


def write_store_bytes(path: Path, content: bytes) -> None:
    """Replaces a file of the store; raises StoreWriteError."""
    atomic.write_bytes(path, content, advice=_AGAIN, error=StoreWriteError)


def write_store_json(path: Path, value: dict) -> None:
    """Replaces a file of the store by one line of JSON; raises StoreWriteError."""
    write_store_bytes(path, json.dumps(value).encode())


def remove_temporaries(task: Task) -> None:
    """Removes what a process that was ended amid a shard has left of it."""
    for file in (RECORDS, TIMES, DONE, ASIDE):
        path = task.path(file)
        path.with_name(path.name + TEMPORARY).unlink(missing_ok=True)


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
