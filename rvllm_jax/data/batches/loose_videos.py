"""The clips of loose video files, bit for bit as training and evaluation see them."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rvllm_jax.data.batches.clips import FrameSampling, evaluation_views, read_view
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.types import VideoInfo


class VideoClips(NamedTuple):
    """The C distinct test clips of a video, of T frames each."""

    frames: np.ndarray  # uint8[C, T, S, S, 3]; zeros where there is no frame
    mask: np.ndarray  # bool[C, T]; False: padding behind a short video
    counts: np.ndarray  # int32[C]; how many of the test clips each is
    times: np.ndarray  # float64[C, T]; seconds, NaN where there is no frame
    info: VideoInfo  # what the file's headers hold
    note: str  # what a person should know of the file, such as that it is cut; or ""


def load_video(
    path: str | Path, sampling: FrameSampling, options: StoreOptions, **how
) -> VideoClips:
    """The clips of one file, decoded in this process; raises what `load_videos` gives or raises."""
    (clips,) = load_videos([path], sampling, options, workers=0, **how)
    if isinstance(clips, VideoError):
        raise clips
    return clips


def load_videos(
    paths: Sequence[str | Path],
    sampling: FrameSampling,
    options: StoreOptions,
    *,
    crop: int,
    views: str,
    workers: int | None = None,
    at_once: int = 16,
) -> Iterator[VideoClips | VideoError]:
    """The clips of each file, in order, or why there are none: no such file, nothing of it
    decodes, its frames are smaller than the crop.

    Files are decoded into a frame store and read from there, which is the way of every video that
    is trained on, a JPEG's losses included; the store lies in the folder of temporary files and is
    deleted.

    Args:
        options: how frames are stored, before clips are read.
        views: a key of `clips.VIEWS`.
        workers: processes that decode, by default one a processor: a file may hang or crash one.
            0 decodes in this process.
        at_once: so many files are decoded before the first of them is given.

    Raises:
        FrameStoreError: there is no room for the store.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    for first in range(0, len(paths), at_once):
        part = {str(n): Path(path) for n, path in enumerate(paths[first : first + at_once])}
        files = {name: path for name, path in part.items() if path.is_file()}
        with tempfile.TemporaryDirectory(prefix="rvllm-frames-") as folder:
            store = write_store(folder, files, options, workers=workers) if files else None
            for name, path in part.items():
                if name in files:
                    yield _read_clips(store, name, path, sampling, crop=crop, views=views)
                else:
                    what = "a folder" if path.is_dir() else "not there"
                    yield VideoError(f"{path}: is {what}, expected a video file; correct the path")


def _read_clips(
    store: FrameStore, name: str, path: Path, sampling: FrameSampling, **how
) -> VideoClips | VideoError:
    """The distinct test views of one file of the store."""
    if name in store.bad:
        return VideoError(store.bad[name])
    entry, stored = store.entry(name), store.timestamps(name)
    try:
        views = evaluation_views(stored, entry.height, entry.width, sampling=sampling, **how)
    except ValueError as error:
        return VideoError(f"{path}: {error}")
    clips = [read_view(store, name, view, frames=sampling.frames) for view in views]
    frames, mask = (np.stack(part) for part in zip(*clips, strict=True))
    times = np.full(mask.shape, np.nan)
    times[mask] = np.concatenate([stored[view.indices] for view in views])
    counts = np.array([view.count for view in views], np.int32)
    return VideoClips(frames, mask, counts, times, store.info[name], store.notes.get(name, ""))
