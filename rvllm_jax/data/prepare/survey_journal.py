"""What a first look at the videos has found, so that a preparation that is stopped keeps it.

Looking at a file whose container does not declare its frames reads all of its packets; of a large
folder that takes as long as any other part of the work.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import av

from rvllm_jax.data.store.journal import Journal
from rvllm_jax.data.store.shards import naming, stamp
from rvllm_jax.data.video.decode import VideoInfo


class Thumbnail(NamedTuple):
    """A frame from the first seconds of a video, as a JPEG, and what it takes in a store."""

    jpeg: bytes
    pixels: int  # of the frame at the store's size
    stored_bytes: int  # of it as a JPEG of the store


class Job(NamedTuple):
    """A video to be looked at; with a `short_side` a thumbnail of it is wanted."""

    name: str
    path: Path
    short_side: int | None


class SurveyJournal:
    """A file of what was found of videos that are readable; the others are looked at again.

    found: name -> what an earlier look at the same file, for the same thumbnail, has found.
    Raises `StoreWriteError` where the file cannot be written.
    """

    def __init__(self, path: Path, jobs: Mapping[str, Job]):
        self._path, self._jobs = path, jobs
        self.found: dict[str, tuple[VideoInfo, Thumbnail | None]] = {}
        with naming(path):
            self._file = Journal(path)
            for done in self._file.done:
                facts, images = done.facts, list(self._file.records(done))
                job = jobs.get(facts["name"])
                if job is None or facts["of"] != _of(job):
                    continue
                thumbnail = Thumbnail(images[0], *facts["thumbnail"]) if images else None
                self.found[job.name] = VideoInfo(*facts["info"]), thumbnail

    def add(self, name: str, info: VideoInfo, thumbnail: Thumbnail | None) -> None:
        facts = {"name": name, "of": _of(self._jobs[name]), "info": info}
        with naming(self._path):
            if thumbnail:
                self._file.write(thumbnail.jpeg)
                facts["thumbnail"] = thumbnail[1:]
            self._file.end(facts)

    def close(self) -> None:
        with naming(self._path):
            self._file.close()


def _of(job: Job) -> list:
    """What decides the outcome of a look."""
    return [*stamp(job.path), job.short_side, av.__version__]
