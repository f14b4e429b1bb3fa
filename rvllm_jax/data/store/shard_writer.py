"""Writing shards of a frame store: one in this process, or many in processes that are watched.

Shards are the unit of work: each is written by one process, from videos that the plan in
`data/store/writer.py` gives it, under temporary names and renamed when whole. A video may hang the
decoder or crash its process, whatever is checked before. Then it is set aside by name, on disk, so
that a continued preparation does not meet it again, and the shard is written without it.
"""

import array
import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from rvllm_jax.data.store import record
from rvllm_jax.data.store.journal import Journal
from rvllm_jax.data.store.shards import (
    DONE,
    MIN_DECODED,
    RECORDS,
    TIME_LIMIT,
    TIMES,
    FrameStoreError,
    Task,
    VideoEntry,
    naming,
    read_aside,
    remove_temporaries,
    write_aside,
    write_store_bytes,
    write_store_json,
)
from rvllm_jax.data.video import decode
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.system.atomic import TEMPORARY, move
from rvllm_jax.system.fingerprint import file_crc
from rvllm_jax.system.pool import KILLED, JobOutcome, WatchedPool, WorkerError

# One record a chunk, so that a record is read without its neighbours. Neither noise-like raw
# frames nor JPEG gain from compression what it costs at each read.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_MAX_RECORD = 1 << 30  # bytes of its frames
_SMALLER = "Store smaller frames (short_side) or fewer a record, or remove the video"


def write_shards(
    tasks: Sequence[Task], workers: int, in_work: Callable[[int], None] = lambda videos: None
) -> Iterator[dict]:
    """Yields the summary of each shard when it is finished, in any order.

    A video of which no frame comes for TIME_LIMIT seconds, or whose process crashes, is set
    aside, recorded in the store's folder; the other videos of its shard are written. A process that
    was killed from outside, as for memory, gets a second try.

    Args:
        tasks: the shards to write, of one store.
        workers: how many processes, at least 1; as `WatchedPool` starts them.
        in_work: called now and then with the number of videos that are done of unfinished shards.

    Raises:
        FrameStoreError: the folder cannot be written, or a process ends outside of any video.
    """
    if not tasks:
        return
    unfinished = {task.shard: task for task in tasks}
    killed: set[tuple[int, int]] = set()
    pool = WatchedPool(
        write_shard,
        workers,
        time_limit=TIME_LIMIT,
        on_check=lambda positions: in_work(sum(max(0, position) for position in positions)),
    )
    try:
        with pool:
            for outcome in pool.results(tasks):
                task, video = outcome.job, (outcome.job.shard, outcome.mark)
                if not outcome.failure:
                    del unfinished[task.shard]
                    yield outcome.result
                    continue
                if outcome.failure != KILLED or video in killed:
                    _set_aside(outcome)
                killed.add(video)
                pool.put(task)
    except WorkerError as error:
        raise FrameStoreError(
            f"{tasks[0].folder}: {error}. Prepare again: finished shards are kept"
        ) from error
    finally:
        for task in unfinished.values():
            remove_temporaries(task)


def _set_aside(outcome: JobOutcome) -> None:
    """Records on disk that the video in work is not to be tried again."""
    task = outcome.job
    name, path = task.videos[outcome.mark]
    why = decode.worker_failure(outcome, path, TIME_LIMIT)
    write_aside(task, read_aside(task) | {name: why})


def write_shard(task: Task, beat: Callable[[int], None] = lambda position: None) -> dict:
    """Writes the records and times of a shard in this process; returns, and stores, its summary.

    `beat` is called with the position of the video in work before it, after each of its frames and
    each megabyte of its checksum, and with -1 behind the last video. A process that is stopped
    leaves a journal, from which the next one takes the videos that are done.
    """
    shard_path = task.path(RECORDS)
    temporary = shard_path.with_name(shard_path.name + TEMPORARY)
    aside = read_aside(task)
    with _writer(temporary) as writer, _journal(task) as journal:
        shard = _Shard(task, writer, temporary, journal)
        shard.replay()
        replayed = {facts["name"] for facts in shard.videos}
        for position, (name, path) in enumerate(task.videos):
            beat(position)
            if name in aside:
                shard.videos.append(_facts(name, bad=aside[name]))
            elif name not in replayed:
                shard.add(name, path, functools.partial(beat, position))
        beat(-1)
    move(temporary, shard_path)
    content = np.asarray(shard.times, "<f8").tobytes()
    write_store_bytes(task.path(TIMES), content)
    summary = {
        "fingerprint": task.fingerprint,
        "shard": task.shard,
        "bytes": shard_path.stat().st_size,
        "times_crc": zlib.crc32(content),
    }
    for table, key in (("entries", "entry"), ("bad", "bad"), ("info", "info"), ("notes", "notes")):
        summary[table] = {facts["name"]: facts[key] for facts in shard.videos if facts[key]}
    write_store_json(task.path(DONE), summary)
    task.journal.unlink(missing_ok=True)
    return summary


def _facts(name: str, *, entry=None, bad: str | None = None, info=None, notes=None) -> dict:
    """What is known of a video: its `VideoEntry` or why it has none, `VideoInfo`, notes."""
    return {"name": name, "entry": entry, "bad": bad, "info": info, "notes": notes}


class _Shard:
    """A shard in work: what is written of it, and what is known of its videos, `_facts` of each.

    Holds one record's frames at a time, so that memory does not depend on the videos' length.
    """

    def __init__(
        self,
        task: Task,
        writer: array_record_module.ArrayRecordWriter,
        path: Path,
        journal: Journal | None,
    ):
        self.videos: list[dict] = []
        self.times = array.array("d")  # seconds
        self._task, self._writer, self._path = task, writer, path
        self._journal, self._records = journal, 0

    def replay(self) -> None:
        """Writes the videos that the journal holds."""
        for entry in self._journal.entries if self._journal else ():
            for data in self._journal.records(entry):
                self._append(data, None)
            self.times.extend(entry.facts.pop("times"))
            self.videos.append(entry.facts)

    def add(self, name: str, path: Path, on_frame: Callable[[], None]) -> None:
        """Writes a video, or what is wrong with it."""
        options, first_time = self._task.options, len(self.times)
        decoding = decode.Decoding(
            path,
            stride=options.stride,
            short_side=options.short_side,
            min_decoded=MIN_DECODED,
            on_frame=on_frame,
        )
        entry = bad = None
        # A video may fail behind its first records: they stay, but no entry names them.
        try:
            entry = self._write(name, path, decoding, on_frame)
        except VideoError as error:
            bad = str(error)
        except MemoryError:
            bad = f"{path}: its frames take too much memory. {_SMALLER}"
        notes = decoding.note or None if entry else None
        facts = _facts(name, entry=entry, bad=bad, info=decoding.info, notes=notes)
        self.videos.append(facts)
        if self._journal:
            with naming(self._path):
                times = self.times[first_time:].tolist()
                self._journal.end({"name": name, "times": times, **facts})

    def _write(
        self, name: str, path: Path, decoding: decode.Decoding, on_frame: Callable[[], None]
    ) -> VideoEntry:
        """Writes all records of a video."""
        options, first_record, first_time = self._task.options, self._records, len(self.times)
        buffer, filled, first = None, 0, 0
        for frame, seconds in decoding:
            if buffer is None:
                if frame.size * options.frames_per_record > _MAX_RECORD:
                    raise VideoError(
                        f"{path}: {options.frames_per_record} frames of {frame.shape[1]} x "
                        f"{frame.shape[0]} pixels are no record of at most {_MAX_RECORD:,} bytes. "
                        f"{_SMALLER}"
                    )
                buffer = np.empty((options.frames_per_record, *frame.shape), np.uint8)
            buffer[filled] = frame
            self.times.append(seconds)
            filled += 1
            if filled == options.frames_per_record:
                self._write_record(name, first, buffer)
                first, filled = first + filled, 0
        if filled:
            self._write_record(name, first, buffer[:filled])
        times = self.times[first_time:]
        seconds = times[-1] - times[0]
        return VideoEntry(
            shard=self._task.shard,
            first_record=first_record,
            num_records=self._records - first_record,
            num_frames=len(times),
            height=buffer.shape[1],
            width=buffer.shape[2],
            stride=options.stride,
            fps=(len(times) - 1) / seconds if seconds > 0 else 0.0,
            first_time=first_time,
            # A large file on a slow disk takes minutes, and is not set aside for it.
            file_crc=file_crc(path, on_frame),
        )

    def _write_record(self, name: str, first: int, frames: np.ndarray) -> None:
        times = self.times[-len(frames) :]
        data = record.pack(name, first, times, frames, self._task.options.encoding)
        self._append(data, self._journal)

    def _append(self, data: bytes, journal: Journal | None) -> None:
        with naming(self._path):
            self._writer.write(data)
            if journal:
                journal.write(data)
        self._records += 1


@contextlib.contextmanager
def _journal(task: Task) -> Iterator[Journal | None]:
    """The journal of a shard; None where it would save nothing, of a single video."""
    if len(task.videos) == 1:
        yield None
        return
    with naming(task.journal):
        journal = Journal(task.journal)
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
