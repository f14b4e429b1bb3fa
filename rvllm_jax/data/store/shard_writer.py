"""Writing one shard of the frame store.

Shards are the unit of work: each is written by one process, from videos that the plan in
`data/store/writer.py` gives it, under temporary names and renamed when whole.
"""

import array
import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from rvllm_jax.data.store import record
from rvllm_jax.data.store.journal import Journal
from rvllm_jax.data.store.shards import (
    Task,
    VideoEntry,
    done_file,
    journal_file,
    naming,
    read_aside,
    record_file,
    times_file,
    write_store_bytes,
    write_store_json,
)
from rvllm_jax.data.video import container, decode
from rvllm_jax.system.atomic import TEMPORARY, move

# One record a chunk, so that a record is read without its neighbours. Neither noise-like raw
# frames nor JPEG gain from compression what it costs at each read.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_MAX_RECORD = 1 << 30  # bytes of its frames
_SMALLER = "Store smaller frames (short_side) or fewer a record, or remove the video"


# What a journal keeps of a video, beside records and times: by the attribute of _Shard.
_KNOWN = {"entry": "entries", "bad": "bad", "info": "info", "notes": "notes"}


def write_shard(task: Task, beat: Callable[[int], None] = lambda position: None) -> dict:
    """Writes the records and times of a shard in this process; returns, and stores, its summary.

    `beat` is called with the position of the video in work before it, after each of its frames and
    each megabyte of its checksum, and with -1 behind the last video. A process that is stopped
    leaves a journal, from which the next one takes the videos that are done.
    """
    names = [name(task.shard, task.options.shards) for name in (record_file, times_file, done_file)]
    shard_path, times_path, done_path = (task.folder / name for name in names)
    temporary = shard_path.with_name(shard_path.name + TEMPORARY)
    aside = read_aside(task)
    with _writer(temporary) as writer, _journal(task) as journal:
        shard = _Shard(task, writer, temporary, journal)
        replayed = shard.replay()
        for position, (name, path) in enumerate(task.videos):
            beat(position)
            if name in aside:
                shard.bad[name] = aside[name]
            elif name not in replayed:
                shard.add(name, path, functools.partial(beat, position))
        beat(-1)
    move(temporary, shard_path)
    content = np.asarray(shard.times, "<f8").tobytes()
    write_store_bytes(times_path, content)
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
    write_store_json(done_path, done)
    _journal_path(task).unlink(missing_ok=True)
    return done


class _Shard:
    """A shard in work: what is written of it, and what is known of its videos.

    Holds one record's frames at a time, so that memory does not depend on the videos' length.
    """

    def __init__(
        self,
        task: Task,
        writer: array_record_module.ArrayRecordWriter,
        path: Path,
        journal: Journal | None,
    ):
        self.entries: dict[str, VideoEntry] = {}
        self.bad: dict[str, str] = {}
        self.info: dict[str, decode.VideoInfo] = {}
        self.notes: dict[str, str] = {}
        self.times = array.array("d")  # seconds
        self._shard, self._options, self._writer, self._path = (
            task.shard, task.options, writer, path,
        )  # fmt: skip
        self._journal, self._records = journal, 0

    def replay(self) -> set[str]:
        """Writes the videos that the journal holds; returns their names."""
        names = set()
        for done in self._journal.done if self._journal else ():
            for data in self._journal.records(done):
                with naming(self._path):
                    self._writer.write(data)
            self._records += len(done.records)
            name, facts = done.facts["name"], done.facts
            names.add(name)
            self.times.extend(facts["times"])
            if facts["entry"]:
                self.entries[name] = VideoEntry(*facts["entry"])
            if facts["info"]:
                self.info[name] = decode.VideoInfo(*facts["info"])
            for kind in ("bad", "notes"):
                if facts[kind]:
                    getattr(self, kind)[name] = facts[kind]
        return names

    def add(self, name: str, path: Path, on_frame: Callable[[], None]) -> None:
        """Writes a video, or names it in `bad`."""
        options = self._options
        decoding = decode.Decoding(
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
        except container.VideoError as error:
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
                file_crc=_crc(path, on_frame),
            )
            if decoding.note:
                self.notes[name] = decoding.note
        if decoding.info is not None:
            self.info[name] = decoding.info
        if self._journal:
            known = {k: getattr(self, v).get(name) for k, v in _KNOWN.items()}
            facts = {"name": name, "times": self.times[first_time:].tolist(), **known}
            with naming(self._path):
                self._journal.end(facts)

    def _write(self, name: str, path: Path, decoding: decode.Decoding) -> tuple[int, int]:
        """Writes all records of a video; returns (height, width) of its frames."""
        per_record, encoding = self._options.frames_per_record, self._options.encoding
        buffer, filled, first = None, 0, 0
        for frame, seconds in decoding:
            if buffer is None:
                if frame.size * per_record > _MAX_RECORD:
                    raise container.VideoError(
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
        data = record.pack(name, first, self.times[-len(frames) :], frames, encoding)
        with naming(self._path):
            self._writer.write(data)
            if self._journal:
                self._journal.write(data)
        self._records += 1


def _crc(path: Path, on_block: Callable[[], None]) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
            on_block()  # a large file on a slow disk takes minutes, and is not set aside for it
    return crc


def _journal_path(task: Task) -> Path:
    return task.folder / journal_file(task.shard, task.options.shards, task.fingerprint)


@contextlib.contextmanager
def _journal(task: Task) -> Iterator[Journal | None]:
    """The journal of a shard; None where it would save nothing, of a single video."""
    if len(task.videos) == 1:
        yield None
        return
    with naming(_journal_path(task)):
        journal = Journal(_journal_path(task))
    try:
        yield journal
    finally:
        with contextlib.suppress(OSError):  # the disk is full: what was flushed is enough
            journal.close()


@contextlib.contextmanager
def _writer(temporary: Path) -> Iterator[array_record_module.ArrayRecordWriter]:
    """An open ArrayRecord writer; leaves no half shard behind where something fails."""
    try:
        with naming(temporary):
            writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()  # its thread must not write on
            raise
        with naming(temporary):
            writer.close()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
