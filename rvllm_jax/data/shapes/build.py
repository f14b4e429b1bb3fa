"""The embedded dataset: rendered clips of coloured shapes, as real H.264 and LLaVA files.

One to three shapes move, stop, appear and vanish over a noisy background; the questions need
colour, form, number, direction of motion and order in time. From here on a clip is read by exactly
the path that a user's own videos take.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging

from rvllm_jax.data.shapes import questions, scene
from rvllm_jax.data.video import encode
from rvllm_jax.system import random
from rvllm_jax.system.atomic import make_folder, read_json_or_empty, write_json
from rvllm_jax.system.lock import locked
from rvllm_jax.system.pool import end_with_parent

EMBEDDED = "shapes"  # the value of config.data.videos that asks for this dataset
SIZES = {"train": 6000, "validation": 200, "test": 600, "heldout": 360}
MARKER = "shapes.json"
VERSION = 1  # of the family; raise it with any change to what is drawn, asked or encoded
_CHUNK = 50  # clips that a process is given, and that are reported, at a time

# Markers of before VERSION held a digest of the source files instead. Those of version 1's clips,
# of the default options, by what encoded them: such a folder is taken as it is.
_DIGESTS = {
    "av 18.1.0 numpy 2.4.0": "f69ad70aa69300b1",
    "av 18.1.0 numpy 2.4.1": "95db8da7483b1284",
    "av 18.1.0 numpy 2.4.2": "4878463250cec0bd",
    "av 18.1.0 numpy 2.4.3": "faff3a562f3f274f",
    "av 18.1.0 numpy 2.4.4": "3b11439a308b0f1a",
    "av 18.1.0 numpy 2.4.5": "0f22f1c87d58ab9f",
    "av 18.1.0 numpy 2.4.6": "cfc576c0494db446",
}


@dataclasses.dataclass(frozen=True)
class ShapesOptions:
    """All that decides the bytes of a dataset: clips of `frames` frames of size x size pixels.

    Raises ValueError for values that make no dataset.
    """

    seed: int = 0
    frames: int = scene.CLIP
    size: int = scene.PICTURE
    fps: int = 8
    crf: int = 18

    def __post_init__(self):
        if self.seed < 0 or self.frames < 24 or self.size < 24 or self.size % 2:
            raise ValueError(
                "a clip needs seed >= 0, 24 frames or more and an even size of 24 pixels or more: "
                f"{self}"
            )


def open_embedded(
    root: str | os.PathLike, *, workers: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, dict[str, Path]]:
    """The videos' folder and each split's JSON of the whole dataset in root/shapes; as `build`.

    Logs where it must be rendered first.
    """
    folder = Path(root) / EMBEDDED
    if not (folder / "videos").is_dir():
        logging.info(
            "the embedded dataset is rendered to %s first, once (config.data.videos=%r; name a "
            "folder of videos there to use your own)", folder, EMBEDDED,
        )  # fmt: skip
    return folder / "videos", build(folder, workers=workers, progress=progress)


def build(
    folder: str | os.PathLike,
    options: ShapesOptions | None = None,
    *,
    sizes: Mapping[str, int] = SIZES,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Writes folder/videos/ID.mp4 and folder/SPLIT.json; returns the path of each split's JSON.

    Every clip is a function of (seed, split, index) alone. The marker folder/shapes.json is written
    before the first clip and declared finished after the last file: a finished folder of the same
    options is reused, an unfinished one is completed, one of other options is made anew; a second
    process waits for the first.

    Args:
      sizes: number of clips a split, of train, validation, test and heldout.
      workers: processes that render, 0 for none (then the caller needs no `__main__` guard).
      progress: called with (clips done, clips in all).

    Raises:
      ValueError: for sizes that make no dataset.
      VideoError: when a clip cannot be written.
    """
    folder, options = Path(folder), options or ShapesOptions()
    _check(sizes)
    paths = {split: folder / f"{split}.json" for split in sizes}
    marker = _marker(options, sizes)
    clips = [(split, index) for split, count in sizes.items() for index in range(count)]
    wanted = {f"{_name(*clip)}.mp4" for clip in clips}
    there = read_json_or_empty(folder / MARKER)
    if there.get("finished") and _is_of(there, marker) and wanted <= _clips(folder):
        if all(path.is_file() for path in paths.values()):
            return paths
    with locked(folder, wait=logging.warning, advice="name another folder"):
        present = _take_up(folder, marker)
        work = functools.partial(_make, options=options, videos=folder / "videos", present=present)
        records: dict[str, list] = {split: [] for split in sizes}
        for done, record in enumerate(_map(work, clips, workers), 1):
            records[clips[done - 1][0]].append(record)
            if progress and (done % _CHUNK == 0 or done == len(clips)):
                progress(done, len(clips))
        for split, path in paths.items():
            write_json(path, records[split])
        write_json(folder / MARKER, marker | {"finished": True})
    return paths


def _marker(options: ShapesOptions, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The marker of a dataset without "finished": everything that its bytes depend on."""
    made_with = f"av {av.__version__} numpy {np.__version__}"
    options = dataclasses.asdict(options)
    return {"version": VERSION, "made_with": made_with, **options, "sizes": dict(sizes)}


def _is_of(there: Mapping[str, Any], marker: dict[str, Any]) -> bool:
    """Whether `there` is the marker of this dataset, finished or not."""
    if str(there.get("fingerprint", ""))[:16] == _DIGESTS.get(marker["made_with"]):
        return marker == _marker(ShapesOptions(), SIZES)
    return {**there, "finished": True} == {**marker, "finished": True}


def _clips(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in (folder / "videos").glob("*.mp4"))


def _take_up(folder: Path, marker: dict[str, Any]) -> frozenset[str]:
    """The clips of this dataset that the folder holds already; those of others are removed."""
    there, videos = read_json_or_empty(folder / MARKER), make_folder(folder / "videos")
    if not _is_of(there, marker):
        # Only of a folder with our marker do we know that the clips in it are ours to remove.
        for stale in _clips(folder) if there else ():
            (videos / stale).unlink()
        write_json(folder / MARKER, marker | {"finished": False})
        return frozenset()
    return _clips(folder)


def draw_clip(options: ShapesOptions, split: str, index: int) -> tuple[scene.Scene, dict]:
    """The scene of one clip and its LLaVA record, without rendering it.

    The index decides number, form and direction of the shape `asked`, so that every run of 60
    clips holds each combination of them once: no answer is more frequent by chance.
    """
    heldout = split == "heldout"
    rng = random.rendered(options.seed, list(SIZES).index(split), index, 0)
    count, form = 1 + index % 3, scene.FORMS[index % 4]
    direction = list(scene.DIRECTIONS)[index % 5]
    for attempt in range(10_000):
        if attempt >= 200:  # no caption of this form and direction is this split's
            direction = str(rng.choice(list(scene.DIRECTIONS)))
        drawn = scene.draw(rng, count, form, direction, heldout=heldout, frames=options.frames)
        caption = questions.caption(drawn)
        if heldout or questions.caption_split(caption) == split:
            break
    else:
        raise RuntimeError(
            f"no scene for {split} clip {index} in 10,000 draws: the rules of "
            "shapes.questions.caption_split leave this split no captions"
        )
    turns = questions.questions(drawn, heldout=heldout)
    if split == "train":  # the densest supervision there is; no other split is asked for it
        turns.append(("caption", questions.CAPTION_QUESTION, caption))
    name, messages = _name(split, index), []
    for kind, question, answer in turns:
        slot = "" if messages else "<video>\n"
        messages += [
            {"from": "human", "value": slot + question, "type": kind},
            {"from": "gpt", "value": answer},
        ]
    record = {"id": name, "video": f"{name}.mp4", "caption": caption, "conversations": messages}
    return drawn, record


def _make(
    clip: tuple[str, int], *, options: ShapesOptions, videos: Path, present: frozenset[str]
) -> dict:
    """Writes a clip that is not `present`; returns its record."""
    split, index = clip
    drawn, record = draw_clip(options, split, index)
    if record["video"] not in present:
        rng = random.rendered(options.seed, list(SIZES).index(split), index, 1)
        frames = scene.render(rng, drawn, options.size)
        encode.write(videos / record["video"], frames, fps=options.fps, crf=options.crf)
    return record


def _map(work: Callable, clips: list, workers: int) -> Iterator[dict]:
    if workers == 0:
        yield from map(work, clips)
        return
    # Spawned, not forked: the caller may hold JAX's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, end_with_parent) as pool:
        try:
            yield from pool.map(work, clips, chunksize=_CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def _name(split: str, index: int) -> str:
    return f"{split}-{index:05d}"


def _check(sizes: Mapping[str, int]) -> None:
    if unknown := set(sizes) - set(SIZES):
        raise ValueError(f"sizes names {sorted(unknown)}; the splits are {list(SIZES)}")
    if any(count < 1 for count in sizes.values()) or not sizes:
        raise ValueError(f"every split needs at least one clip: {dict(sizes)}")
