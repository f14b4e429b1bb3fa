"""A first look at every video before any is stored: what it is, and what its frames will take.

Looking at a file whose container does not declare its frames reads all of its packets; of a large
folder that takes as long as any other part of the work, so that a journal keeps what is known.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import simplejpeg

from rvllm_jax.data.store import record
from rvllm_jax.data.store.journal import Journal
from rvllm_jax.data.store.shards import TIME_LIMIT, StoreOptions, naming, stamp
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.data.video.decode import Decoding, worker_failure
from rvllm_jax.system.pool import WatchedPool
from rvllm_jax.types import VideoInfo

_THUMBNAIL = 144  # pixels of the short side
_LATEST = 48  # a thumbnail is not looked for behind this frame, so that long videos cost no more
_BYTES_A_FRAME = 8  # a coded frame takes at least about this: a check on what headers declare


class Thumbnail(NamedTuple):
    """A frame from the first seconds of a video, as a JPEG, and what it takes in a store."""

    jpeg: bytes
    pixels: int  # of the frame at the store's size
    stored_bytes: int  # of it as a JPEG of the store


class SurveyJob(NamedTuple):
    """A video to be inspected; with a `short_side` a thumbnail of it is wanted."""

    name: str
    path: Path
    short_side: int | None

    @property
    def decisive(self) -> list:
        """What decides the outcome of an inspection."""
        return [*stamp(self.path), self.short_side, av.__version__]


class Inspection(NamedTuple):
    """What is known of a video: `info`, or why there is none, and its thumbnail, if wanted."""

    name: str
    info: VideoInfo | None
    thumbnail: Thumbnail | None = None
    bad: str = ""


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of videos before they are decoded.

    Attributes:
        info: name -> what header and first frame declare.
        bad: name -> why nothing can be read of it.
        thumbnails: name -> a frame; of an even choice of the videos.
    """

    info: dict[str, VideoInfo]
    bad: dict[str, str]
    thumbnails: dict[str, Thumbnail]

    def estimate(self, options: StoreOptions) -> dict:
        """What a store of them will hold: "frames", "bytes", and the videos of "unknown" length.

        JPEG frames are taken to need as many bytes a pixel as those of the thumbnails.
        """
        pixels = sum(thumbnail.pixels for thumbnail in self.thumbnails.values())
        stored = sum(thumbnail.stored_bytes for thumbnail in self.thumbnails.values())
        rate = 3.0 if options.encoding == "raw" else stored / pixels if pixels else 0.3
        frames, total, unknown = 0, 0.0, 0
        for info in self.info.values():
            declared = info.frames or round(info.seconds * info.fps)
            unknown += declared == 0
            count = -(-min(declared, info.bytes // _BYTES_A_FRAME) // options.stride)
            scale = options.short_side / min(info.width, info.height)
            frames += count
            total += count * info.width * info.height * scale**2 * rate
        return {"frames": frames, "bytes": round(total), "unknown": unknown}


def survey(
    files: Mapping[str, Path],
    *,
    thumbnails: int,
    short_side: int,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    journal: Path | None = None,
) -> Survey:
    """Reads the header and the first frame of every file, and takes a few thumbnails.

    Args:
        files: name -> path.
        thumbnails: of how many videos, spread evenly over the sorted names.
        short_side: pixels of the store's frames.
        workers: processes that inspect, each ended, and its video bad, after TIME_LIMIT seconds
            without a sign of life (a packet read, a frame decoded); 0: this one alone, where a
            video that hangs or crashes the decoder hangs or crashes the caller.
        progress: called with (videos done, all videos).
        journal: a file that keeps what is found, for a survey that goes on where this one is
            stopped; the caller removes it. Raises `StoreWriteError` where it cannot be written.
    """
    names = sorted(files)
    chosen = set(np.linspace(0, len(names) - 1, min(thumbnails, len(names))).round().astype(int))
    jobs = {
        name: SurveyJob(name, files[name], short_side if number in chosen else None)
        for number, name in enumerate(names)
    }
    with contextlib.ExitStack() as stack:
        kept = journal and stack.enter_context(contextlib.closing(SurveyJournal(journal, jobs)))
        results: dict[str, Inspection] = dict(kept.inspections) if kept else {}
        left = [job for name, job in jobs.items() if name not in results]
        if results and progress is not None:
            progress(len(results), len(names))
        inspections = _inspect_all(left, workers)
        for result in stack.enter_context(contextlib.closing(inspections)):
            results[result.name] = result
            if kept and result.info:
                kept.add(result)
            if progress is not None:
                progress(len(results), len(names))
    ordered = [results[name] for name in names]
    return Survey(
        info={result.name: result.info for result in ordered if result.info},
        bad={result.name: result.bad for result in ordered if result.bad},
        thumbnails={result.name: result.thumbnail for result in ordered if result.thumbnail},
    )


def _inspect(job: SurveyJob, beat: Callable[[int], None] = lambda mark: None) -> Inspection:
    """Inspects a video. beat: called with 0 at each sign of life.

    Of mkv, webm, ts and flv all packets are read for their times, which takes minutes of a large
    file on a slow disk.
    """
    beat(0)
    try:
        decoding = Decoding(job.path, short_side=job.short_side, on_frame=lambda: beat(0))
        with contextlib.closing(decoding):
            frame, _ = next(decoding)
            if job.short_side is None:
                return Inspection(job.name, decoding.info)
            wanted = min(decoding.info.frames // 2, _LATEST)
            for later, _ in itertools.islice(decoding, wanted):
                frame = later  # the header may promise more
            return Inspection(job.name, decoding.info, _thumbnail(np.ascontiguousarray(frame)))
    except VideoError as error:
        return Inspection(job.name, None, bad=str(error))


def _thumbnail(frame: np.ndarray) -> Thumbnail:
    """Of `uint8[h, w, 3]` in the store's size."""
    step = max(1, min(frame.shape[:2]) // _THUMBNAIL)
    height, width = (side // step for side in frame.shape[:2])
    blocks = frame[: height * step, : width * step].reshape(height, step, width, step, 3)
    small = blocks.mean((1, 3)).astype(np.uint8)
    jpeg = simplejpeg.encode_jpeg(small, quality=80, colorspace="RGB", colorsubsampling="420")
    return Thumbnail(jpeg, frame.shape[0] * frame.shape[1], len(record.encode_jpeg(frame)))


def _inspect_all(jobs: Sequence[SurveyJob], workers: int) -> Iterator[Inspection]:
    """Inspects each video in a worker process; one that hangs or crashes it is bad."""
    if not workers:
        yield from map(_inspect, jobs)
        return
    with WatchedPool(_inspect, workers, time_limit=TIME_LIMIT) as pool:
        for outcome in pool.results(jobs):
            if outcome.failure:
                name, path, _ = outcome.job
                yield Inspection(name, None, bad=worker_failure(outcome, path, TIME_LIMIT))
            else:
                yield outcome.result


class SurveyJournal:
    """A file of what is known of videos that are readable; the others are inspected again.

    inspections: name -> an earlier one of the same file, for the same thumbnail.
    Raises `StoreWriteError` where the file cannot be written.
    """

    def __init__(self, path: Path, jobs: Mapping[str, SurveyJob]):
        self._path, self._jobs = path, jobs
        self.inspections: dict[str, Inspection] = {}
        with naming(path):
            self._journal = Journal(path)
            for entry in self._journal.entries:
                facts, images = entry.facts, list(self._journal.records(entry))
                job = jobs.get(facts["name"])
                if job is not None and facts["of"] == job.decisive:
                    thumbnail = Thumbnail(images[0], *facts["thumbnail"]) if images else None
                    self.inspections[job.name] = Inspection(
                        job.name, VideoInfo(*facts["info"]), thumbnail
                    )

    def add(self, result: Inspection) -> None:
        """Keeps what is known of a readable video."""
        facts = {"name": result.name, "of": self._jobs[result.name].decisive, "info": result.info}
        with naming(self._path):
            if result.thumbnail:
                self._journal.write(result.thumbnail.jpeg)
                facts["thumbnail"] = result.thumbnail[1:]
            self._journal.end(facts)

    def close(self) -> None:
        with naming(self._path):
            self._journal.close()
