"""A first look at every video before any is stored: what it is, and what its frames will take."""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg

from rvllm_jax.data.prepare.survey_journal import Job, SurveyJournal, Thumbnail
from rvllm_jax.data.store import record
from rvllm_jax.data.video import container, decode
from rvllm_jax.data.video.decode import VideoInfo
from rvllm_jax.system.pool import deaf_to_interrupts, end_with_parent, killed_with_parent

_THUMBNAIL = 144  # pixels of the short side
_LATEST = 48  # a thumbnail is not looked for behind this frame, so that long videos cost no more
_SAY = 0.1  # seconds from one sign of life to the next
_START = 60.0  # seconds that a process may take to start on a busy machine
_BYTES_A_FRAME = 8  # a coded frame takes at least about this: a check on what headers declare


@dataclasses.dataclass(frozen=True)
class Survey:
    """What videos say of themselves.

    Attributes:
        info: name -> what header and first frame say.
        bad: name -> why nothing can be read of it.
        thumbnails: name -> a frame; of an even choice of the videos.
    """

    info: dict[str, VideoInfo]
    bad: dict[str, str]
    thumbnails: dict[str, Thumbnail]

    def estimate(self, *, stride: int, short_side: int, encoding: str) -> dict:
        """What a store of them will hold: "frames", "bytes", and the videos of "unknown" length.

        JPEG frames are taken to need as many bytes a pixel as those of the thumbnails.
        """
        pixels = sum(thumbnail.pixels for thumbnail in self.thumbnails.values())
        stored = sum(thumbnail.stored_bytes for thumbnail in self.thumbnails.values())
        rate = 3.0 if encoding == "raw" else stored / pixels if pixels else 0.3
        frames, total, unknown = 0, 0.0, 0
        for info in self.info.values():
            declared = info.frames or round(info.seconds * info.fps)
            unknown += declared == 0
            count = -(-min(declared, info.bytes // _BYTES_A_FRAME) // stride)
            scale = short_side / min(info.width, info.height)
            frames += count
            total += count * info.width * info.height * scale**2 * rate
        return {"frames": frames, "bytes": round(total), "unknown": unknown}


def survey(
    files: Mapping[str, Path],
    *,
    thumbnails: int,
    short_side: int,
    workers: int = 0,
    time_limit: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
    journal: Path | None = None,
) -> Survey:
    """Reads the header and the first frame of every file, and takes a few thumbnails.

    Args:
        files: name -> path.
        thumbnails: of how many videos, spread evenly over the sorted names.
        short_side: pixels of the store's frames.
        workers: processes that look; 0 looks in this one, where a video that hangs or crashes the
            decoder hangs or crashes the caller.
        time_limit: seconds without a sign of life (a packet read, a frame decoded) after which a
            worker is ended, and its video bad.
        progress: called with (videos done, all videos).
        journal: a file that keeps what is found, for a survey that goes on where this one is
            stopped; the caller removes it. Raises `StoreWriteError` where it cannot be written.
    """
    names = sorted(files)
    chosen = set(np.linspace(0, len(names) - 1, min(thumbnails, len(names))).round().astype(int))
    jobs = {
        name: Job(name, files[name], short_side if number in chosen else None)
        for number, name in enumerate(names)
    }
    with contextlib.ExitStack() as stack:
        kept = journal and stack.enter_context(contextlib.closing(SurveyJournal(journal, jobs)))
        known = dict(kept.found) if kept else {}
        left = [job for name, job in jobs.items() if name not in known]
        looking = _supervised(left, workers, time_limit) if workers else map(_look, left)
        if workers:
            stack.enter_context(contextlib.closing(looking))
        bad: dict[str, str] = {}
        if known and progress is not None:
            progress(len(known), len(names))
        for done, (name, found, thumbnail) in enumerate(looking, len(known) + 1):
            if isinstance(found, str):
                bad[name] = found
            else:
                known[name] = found, thumbnail
                if kept:
                    kept.add(name, found, thumbnail)
            if progress is not None:
                progress(done, len(names))
    info = {name: found for name, (found, _) in known.items()}
    frames = {name: thumbnail for name, (_, thumbnail) in known.items() if thumbnail}
    return Survey(*(dict(sorted(each.items())) for each in (info, bad, frames)))


def _look(
    job: Job, alive: Callable[[], None] = lambda: None
) -> tuple[str, VideoInfo | str, Thumbnail | None]:
    """A video's info, or why it has none; `short_side` asks for a thumbnail too.

    alive: called at each sign of life. Of mkv, webm, ts and flv all packets are read for their
    times, which takes minutes of a large file on a slow disk.
    """
    name, path, short_side = job
    try:
        info = decode.probe(path, on_frame=alive)
        return name, info, short_side and _thumbnail(path, info, short_side, alive)
    except container.VideoError as error:
        return name, str(error), None


def _thumbnail(
    path: Path, info: VideoInfo, short_side: int, alive: Callable[[], None]
) -> Thumbnail:
    wanted = min(info.frames // 2, _LATEST)
    frames = decode.decode(path, short_side=short_side, on_frame=alive)
    for frame, _ in itertools.islice(frames, wanted + 1):
        last = frame  # the header may promise more
    step = max(1, min(last.shape[:2]) // _THUMBNAIL)
    height, width = (side // step for side in last.shape[:2])
    blocks = last[: height * step, : width * step].reshape(height, step, width, step, 3)
    small = blocks.mean((1, 3)).astype(np.uint8)
    jpeg = simplejpeg.encode_jpeg(small, quality=80, colorspace="RGB", colorsubsampling="420")
    pixels = last.shape[0] * last.shape[1]
    return Thumbnail(jpeg, pixels, len(record.encode_jpeg(last)))


@dataclasses.dataclass
class _Worker:
    """A process that looks at one video at a time; none before it has said that it is there."""

    process: multiprocessing.process.BaseProcess
    job: Job | None
    until: float  # time.monotonic() at which it should have answered


def _supervised(
    jobs: Sequence[Job], workers: int, time_limit: float
) -> Iterator[tuple[str, VideoInfo | str, Thumbnail | None]]:
    """`_look` at each job in other processes, of which one that hangs or dies is replaced."""
    context = multiprocessing.get_context("spawn")  # not forked: the parent may hold JAX's threads
    waiting = collections.deque(jobs)
    running: dict[multiprocessing.connection.Connection, _Worker] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with deaf_to_interrupts():
            process.start()
        theirs.close()  # so that its end is seen here
        running[ours] = _Worker(process, None, time.monotonic() + _START)

    def go_on(connection, worker: _Worker) -> None:
        if not (waiting and worker.process.is_alive()):
            _end(connection, worker)
            return
        job = waiting.popleft()
        running[connection] = _Worker(worker.process, job, time.monotonic() + time_limit)
        with contextlib.suppress(OSError):  # it has just ended: its end is read later
            connection.send(job)

    try:
        while waiting or any(worker.job for worker in running.values()):
            for _ in range(min(workers - len(running), len(waiting))):
                start()
            soonest = min(worker.until for worker in running.values())
            ready = multiprocessing.connection.wait(
                list(running), max(0.0, soonest - time.monotonic())
            )
            for connection in ready or [c for c in running if running[c].until <= time.monotonic()]:
                worker = running.pop(connection)
                answer = _answer(connection, worker, connection in ready, time_limit)
                if answer is None and worker.job:
                    until = time.monotonic() + time_limit
                    running[connection] = dataclasses.replace(worker, until=until)
                    continue
                go_on(connection, worker)
                if answer:  # last: the caller may fail, and no worker is forgotten then
                    yield answer
    finally:
        for connection, worker in running.items():
            _end(connection, worker)


def _answer(connection, worker: _Worker, ready: bool, time_limit: float):
    """What a worker says (None: that it lives), or why it says nothing; it is ended then."""
    try:
        if ready:
            return connection.recv()
        worker.process.kill()
        why = f"hangs (no new frame for {time_limit:g} s)"
    except (EOFError, OSError):
        worker.process.join()
        why = f"crashes (exit code {worker.process.exitcode})"
    worker.process.join()
    if worker.job is None:
        raise RuntimeError(
            f"a process to look at videos does not start in {_START:g} s (exit code "
            f"{worker.process.exitcode}); a script that calls this needs `if __name__ == "
            '"__main__":`'
        )
    name, path, _ = worker.job
    return name, f"{path}: the decoder {why}. Replace or re-encode the file, or remove it.", None


def _end(connection, worker: _Worker) -> None:
    connection.close()
    worker.process.kill()
    worker.process.join()


def _serve(connection) -> None:
    """A worker: says that it is there, and looks at what it is sent until nobody sends more."""
    killed_with_parent()
    end_with_parent()
    said = 0.0

    def alive() -> None:
        nonlocal said
        if time.monotonic() - said > _SAY:
            said = time.monotonic()
            connection.send(None)

    alive()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_look(job, alive))
