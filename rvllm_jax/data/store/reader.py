"""Reading a finished frame store: which videos it has, when their frames are shown, and pixels."""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from rvllm_jax.data.store import record as records
from rvllm_jax.data.store.shards import (
    INDEX,
    RECORDS,
    TIMES,
    FrameStoreError,
    StoreOptions,
    VideoEntry,
    shard_file,
)
from rvllm_jax.system.atomic import read_json_or_empty
from rvllm_jax.system.file_layout import STORE
from rvllm_jax.types import VideoInfo

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access
_NAMED = 10  # how many videos a message names
_OPEN = 256  # shards whose files and times a process holds at once


def check_share(bad: Mapping[str, str], total: int, max_bad: float) -> None:
    """Raises `FrameStoreError` when of `total` videos more than a share of `max_bad` are `bad`.

    bad: name of a video that was set aside -> why.
    """
    if len(bad) > max_bad * total:
        named = "; ".join(f"{name!r}: {reason}" for name, reason in sorted(bad.items())[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise FrameStoreError(
            f"{len(bad)} of {total} videos do not decode, a share of {len(bad) / total:.3f} where "
            f"at most {max_bad} is allowed: {named}{more}. Replace them, remove them from the "
            "examples, or raise config.data.max_bad"
        )


class FrameStore:
    """Reads a finished store. Picklable: every process opens the shards it reads by itself.

    Attributes:
        folder: where the store lies.
        entries: name of a video -> `VideoEntry`.
        bad: name of a video that was set aside -> why.
        options: the `StoreOptions` that it was written with.
        info: name of a readable video -> what its header declared; empty in older stores.
        notes: name of a video that is stored in part or with a repair -> what was done.
    """

    def __init__(self, folder: str | Path):
        """Raises `FrameStoreError` where `folder` holds no finished store, `LayoutError` where a
        newer version made it."""
        self.folder = Path(folder)
        index = read_json_or_empty(self.folder / INDEX)
        STORE.check(self.folder / INDEX, index)
        if "layout" not in index:
            raise FrameStoreError(
                f"{self.folder}: holds no {INDEX} of a frame store. Prepare the videos into this "
                "folder (a preparation that was stopped continues)"
            )
        try:
            self.options = StoreOptions.from_index(index)
            self.entries = {name: VideoEntry(*row) for name, row in index["entries"].items()}
            self.bad: dict[str, str] = index["bad"]
            info = index.get("info", {})
            self.info = {name: VideoInfo(*row) for name, row in info.items()}
            self.notes: dict[str, str] = index.get("notes", {})
            self._shards: list[dict] = index["shards"]
            if len(self._shards) != index["options"]["shards"]:
                raise TypeError(f"{len(self._shards)} of {index['options']['shards']} shards")
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(self.folder / INDEX, f"not an index: {error!r}") from error
        self._close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}, "_times": {}, "_process": None}

    def _close(self) -> None:
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._times: dict[int, np.ndarray] = {}
        self._process = os.getpid()

    @property
    def num_frames(self) -> int:
        """Of all videos."""
        return sum(entry.num_frames for entry in self.entries.values())

    @property
    def files(self) -> list[Path]:
        """The shards' files of records."""
        return [self._path(shard) for shard in range(len(self._shards))]

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(shard["bytes"] for shard in self._shards)

    def entry(self, name: str) -> VideoEntry:
        """The entry of a video; raises `FrameStoreError` where the store does not hold it."""
        if name in self.entries:
            return self.entries[name]
        reason = self.bad.get(name, "the store was not made from it")
        raise FrameStoreError(
            f"{self.folder}: does not hold the video {name!r} ({reason}). Prepare again with the "
            "video, or remove its examples"
        )

    def timestamps(self, name: str) -> np.ndarray:
        """When each stored frame of a video is shown, `float64[num_frames]` in seconds."""
        entry = self.entry(name)
        if entry.shard not in self._times:
            path = self.folder / shard_file(TIMES, entry.shard, len(self._shards))
            try:
                content = path.read_bytes()
            except OSError as error:
                raise damaged(path, error.strerror) from error
            if zlib.crc32(content) != self._shards[entry.shard]["times_crc"]:
                raise damaged(path, "its checksum is wrong")
            _keep(self._times, entry.shard, np.frombuffer(content, "<f8"))
        return self._times[entry.shard][entry.first_time :][: entry.num_frames]

    def read(
        self,
        name: str,
        indices: np.ndarray,
        *,
        box: tuple[int, int, int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Reads stored frames of a video, opening no record that holds none of them.

        Args:
            name: the video.
            indices: int[n], each in [0, num_frames), in any order.
            box: (y, x, size) of the square to cut out of each frame; None for all of it.
            out: uint8[n, size, size, 3] (or [n, h, w, 3]) to write to, so that a batch is filled
                without a copy; made if None.

        Returns:
            `out`, RGB.

        Raises:
            FrameStoreError: no such video, a shard that is missing or cut, a damaged record.
            IndexError: an index that the video does not have.
        """
        entry = self.entry(name)
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < entry.num_frames:
            raise IndexError(f"video {name!r} has frames 0 to {entry.num_frames - 1}: {indices}")
        y, x, height, width = (0, 0, entry.height, entry.width) if box is None else (*box, box[2])
        if out is None:
            out = np.empty((len(indices), height, width, 3), np.uint8)
        order = np.argsort(indices, kind="stable")
        numbers, offsets = np.divmod(indices[order], self.options.frames_per_record)
        scratch = np.empty((entry.height, entry.width, 3), np.uint8)
        opened, record = -1, None
        reads = zip(order.tolist(), numbers.tolist(), offsets.tolist(), strict=True)
        for position, number, offset in reads:
            try:
                if number != opened:
                    opened, record = number, self._record(name, entry, number)
                frame = record.frame(offset, scratch)
            except (RuntimeError, records.RecordError) as error:
                what = f"record {entry.first_record + number}, of video {name!r}: {error}"
                raise damaged(self._path(entry.shard), what) from error
            out[position] = frame[y : y + height, x : x + width]
        return out

    def _record(self, name: str, entry: VideoEntry, number: int) -> records.FrameRecord:
        """Record number `number` of a video; raises RuntimeError or RecordError."""
        first = number * self.options.frames_per_record
        count = min(self.options.frames_per_record, entry.num_frames - first)
        record = records.unpack(self._read_bytes(entry.shard, entry.first_record + number))
        header = record.video, record.first_frame, record.shape, record.encoding
        if header != (name, first, (count, entry.height, entry.width), self.options.encoding):
            raise records.RecordError(f"it is not frame {first} of {name!r}: {header}")
        return record

    def path(self, name: str) -> Path:
        """The file that holds the frames of a video."""
        return self._path(self.entry(name).shard)

    def _path(self, shard: int) -> Path:
        return self.folder / shard_file(RECORDS, shard, len(self._shards))

    def _read_bytes(self, shard: int, position: int) -> bytes:
        if self._process != os.getpid():  # forked: the parent's readers are not ours to use
            self._close()
        reader = self._readers.get(shard)
        if reader is None:
            path = str(self._path(shard))
            reader = array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
        data = reader.read([position])[0]
        _keep(self._readers, shard, reader)  # not before a read: one of a broken file is no use
        return data


def _keep(kept: dict, shard: int, value: object) -> None:
    """Adds what is open of a shard; lets go of the oldest where there is too much of it."""
    if shard not in kept and len(kept) >= _OPEN:
        kept.pop(next(iter(kept)))
    kept[shard] = value


def damaged(path: Path, what: str) -> FrameStoreError:
    """What to raise of a file of a store that is broken."""
    return FrameStoreError(
        f"{path}: damaged ({what}). Delete this file and prepare the videos again: only what it "
        "held is decoded anew"
    )
