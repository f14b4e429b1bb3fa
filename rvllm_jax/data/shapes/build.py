"""The embedded dataset: rendered clips of coloured shapes, as real H.264 and LLaVA files.

One to three shapes move, stop, appear and vanish over a noisy background; the questions need
colour, form, number, direction of motion and order in time. From here on a clip is read by exactly
the path that a user's own videos take.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import av
import numpy as np

from rvllm_jax.data.shapes import questions
from rvllm_jax.data.shapes import scene as shapes_scene
from rvllm_jax.data.video import encode
from rvllm_jax.system.pool import end_with_parent

SIZES = {"train": 6000, "validation": 200, "test": 600, "heldout": 360}
MARKER = "shapes.json"
_CHUNK = 50  # clips handed to a process at a time


@dataclasses.dataclass(frozen=True)
class Options:
    """All that decides the bytes of a dataset: clips of `frames` frames of size x size pixels."""

    seed: int = 0
    frames: int = shapes_scene.CLIP
    size: int = shapes_scene.PICTURE
    fps: int = 8
    crf: int = 18


def build(
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = SIZES,
    frames: int = shapes_scene.CLIP,
    size: int = shapes_scene.PICTURE,
    fps: int = 8,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Writes folder/videos/ID.mp4 and folder/SPLIT.json; returns the path of each split's JSON.

    Every clip is a function of (seed, split, index) alone. The marker folder/shapes.json is written
    before the first clip and declared finished after the last file: a finished folder of the same
    options is reused, an unfinished one is completed, one of other options is made anew.

    Args:
      sizes: number of clips a split, of train, validation, test and heldout.
      workers: processes that render, 0 for none (then the caller needs no `__main__` guard).
      progress: called with (clips done, clips in all).

    Raises:
      ValueError: for sizes or options that make no dataset.
      video.VideoError: when a clip cannot be written.
    """
    folder, options = Path(folder), Options(seed, frames, size, fps)
    _check(options, sizes)
    paths = {split: folder / f"{split}.json" for split in sizes}
    finished, present = _prepare(folder, options, sizes)
    wanted = {f"{_name(split, i)}.mp4" for split, count in sizes.items() for i in range(count)}
    if finished and wanted <= present and all(path.is_file() for path in paths.values()):
        return paths
    chunks = [
        (split, range(start, min(start + _CHUNK, count)))
        for split, count in sizes.items()
        for start in range(0, count, _CHUNK)
    ]
    work = functools.partial(_make, options=options, videos=folder / "videos", present=present)
    records: dict[str, list] = {split: [] for split in sizes}
    for (split, _), made in zip(chunks, _map(work, chunks, workers), strict=True):
        records[split] += made
        if progress:
            progress(sum(map(len, records.values())), len(wanted))
    for split, path in paths.items():
        _write_json(path, records[split])
    _write_marker(folder, options, sizes, finished=True)
    return paths


def _prepare(folder: Path, options: Options, sizes: Mapping) -> tuple[bool, frozenset[str]]:
    """Whether the folder holds this dataset finished, and which clips of it are there already."""
    found, videos = _read_marker(folder), folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    if found.get("fingerprint") == _fingerprint(options, sizes):
        present = frozenset(path.name for path in videos.glob("*.mp4"))
        return bool(found.get("finished")), present
    # Only of a folder with our marker do we know that the clips in it are ours to remove.
    for stale in videos.glob("*.mp4") if found else ():
        stale.unlink()
    _write_marker(folder, options, sizes, finished=False)
    return False, frozenset()


def draw_clip(options: Options, split: str, index: int) -> tuple[shapes_scene.Scene, dict]:
    """The scene of one clip and its LLaVA record, without rendering it.

    The index decides number, form and direction of the shape `asked`, so that every run of 60
    clips holds each combination of them once: no answer is more frequent by chance.
    """
    heldout = split == "heldout"
    rng = np.random.default_rng(_entropy(options, split, index, 0))
    count, form = 1 + index % 3, shapes_scene.FORMS[index % 4]
    direction = list(shapes_scene.DIRECTIONS)[index % 5]
    for attempt in range(10_000):
        if attempt >= 200:  # no caption of this form and direction is this split's
            direction = str(rng.choice(list(shapes_scene.DIRECTIONS)))
        scene = shapes_scene.draw(
            rng, count, form, direction, heldout=heldout, frames=options.frames
        )
        caption = questions.caption(scene)
        if heldout or questions.split_of(caption) == split:
            break
    else:
        raise RuntimeError(f"no scene for {split} clip {index} in 10,000 draws: the text rules of"
                           " shapes_text.split_of leave this split no captions")  # fmt: skip
    turns = questions.questions(scene, heldout=heldout)
    if split == "train":  # the densest supervision there is; no other split is asked for it
        turns.append(("caption", questions.CAPTION_QUESTION, caption))
    return scene, _record(_name(split, index), caption, turns)


def _record(name: str, caption: str, turns: list[tuple[str, str, str]]) -> dict:
    messages = []
    for kind, question, answer in turns:
        slot = "" if messages else "<video>\n"
        messages += [
            {"from": "human", "value": slot + question, "type": kind},
            {"from": "gpt", "value": answer},
        ]
    return {
        "id": name, "video": f"{name}.mp4", "caption": caption, "conversations": messages,
    }  # fmt: skip


def _make(
    chunk: tuple[str, range], *, options: Options, videos: Path, present: frozenset[str]
) -> list[dict]:
    split, indices = chunk
    records = []
    for index in indices:
        scene, record = draw_clip(options, split, index)
        records.append(record)
        if record["video"] not in present:
            rng = np.random.default_rng(_entropy(options, split, index, 1))
            clip = shapes_scene.render(rng, scene, options.size)
            encode.write(videos / record["video"], clip, fps=options.fps, crf=options.crf)
    return records


def _map(work: Callable, chunks: list, workers: int) -> Iterator[list[dict]]:
    if workers == 0:
        yield from map(work, chunks)
        return
    # Spawned, not forked: the caller may hold JAX's threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, end_with_parent) as pool:
        try:
            yield from pool.map(work, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def _entropy(options: Options, split: str, index: int, part: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([options.seed, list(SIZES).index(split), index, part])


def _name(split: str, index: int) -> str:
    return f"{split}-{index:05d}"


def _check(options: Options, sizes: Mapping[str, int]) -> None:
    if unknown := set(sizes) - set(SIZES):
        raise ValueError(f"sizes names {sorted(unknown)}; the splits are {list(SIZES)}")
    if any(count < 1 for count in sizes.values()) or not sizes:
        raise ValueError(f"every split needs at least one clip: {dict(sizes)}")
    if options.seed < 0 or options.frames < 24 or options.size < 24 or options.size % 2:
        raise ValueError(
            f"a clip needs seed >= 0, 24 frames or more and an even size of 24 pixels or more: "
            f"{options}"
        )


def _fingerprint(options: Options, sizes: Mapping[str, int]) -> str:
    """Changes with the options, with the code that makes the dataset and with the encoder."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(options), dict(sizes)]).encode())
    for module in (shapes_scene, questions, encode):
        digest.update(Path(module.__file__).read_bytes())
    digest.update(Path(__file__).read_bytes())
    digest.update(f"av {av.__version__} numpy {np.__version__}".encode())
    return digest.hexdigest()


def _write_marker(folder: Path, options: Options, sizes: Mapping[str, int], *, finished: bool):
    fingerprint = _fingerprint(options, sizes)
    asked = {**dataclasses.asdict(options), "sizes": dict(sizes)}
    _write_json(folder / MARKER, {"fingerprint": fingerprint, "finished": finished, **asked})


def _read_marker(folder: Path) -> dict:
    try:
        found = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, value) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)
