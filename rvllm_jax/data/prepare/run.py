"""Videos and annotations in, a prepared folder out: frames, examples, and a report of both.

A prepared folder OUT holds

  frames/            the frame store (data/store/reader.py); tfds/ links to it, for tfds.data_source
  SPLIT.json         the examples in LLaVA's form, videos by their names in the store
  SPLIT.unusable.json  those whose video is missing or does not decode; absent where none
  SPLIT.info.json    where they come from: split, benchmark, counts, and whether they are partial
  look.journal       what a preparation that is not done has seen of the videos
  report.html, .json what the last preparation found; check.html where a later one only looks
  SPLIT.report.html, .json  what the preparation of SPLIT.json found

SPLIT.json and SPLIT.info.json are written last, and only where nothing speaks against training
from them. Several splits may be prepared into one folder one after the other; of two at the same
time, the second waits.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rvllm_jax.data.annotations import split as splits
from rvllm_jax.data.annotations.read import Annotations, read
from rvllm_jax.data.prepare import page as preparation_page
from rvllm_jax.data.prepare.find import find_videos
from rvllm_jax.data.prepare.findings import DONE, REFUSED, Findings
from rvllm_jax.data.prepare.folder import (
    CHECK,
    FOLLOWING,
    FRAMES,
    INFO,
    LOOKED,
    REPORT,
    TFDS,
    UNUSABLE,
    PreparationError,
    alone,
    check_folder,
    check_other_splits,
    left_over,
    pages,
    videos_of_other_splits,
)
from rvllm_jax.data.prepare.survey import survey
from rvllm_jax.data.store.metadata import is_described, write_metadata
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import INDEX, StoreOptions, StoreWriteError, Task
from rvllm_jax.data.store.writer import (
    check_foreign,
    holds,
    is_of,
    write_store,
)
from rvllm_jax.system.atomic import write_bytes, write_json

_UNFINISHED = "the frames are not all stored yet; start the same command again, it continues"
_SPLIT = re.compile(r"[a-z][a-z0-9_]*")
_MEANT = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}

Progress = Callable[[str], Callable[[int, int], None]]
RunTasks = Callable[[list[Task]], Iterator[dict]]


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """How frames are stored; `interval` is that of the clips, in frames of the file."""

    stride: int = 6
    short_side: int = 256
    encoding: str = "jpeg"
    frames_per_record: int = 8
    interval: int = 6

    def check(self) -> None:
        """Raises `PreparationError` where no clip could be cut from such a store."""
        numbers = dataclasses.asdict(self) | {"encoding": 1}
        low = [f"--{key}={value}" for key, value in numbers.items() if value < 1]
        if low:
            raise PreparationError(f"{', '.join(low)}: expected whole numbers of at least 1")
        if self.encoding not in ("raw", "jpeg"):
            raise PreparationError(f"--encoding={self.encoding}: expected raw or jpeg")
        if self.interval % self.stride:
            raise PreparationError(
                f"--stride={self.stride} must divide --interval={self.interval}: only every "
                "stride-th frame is stored, and a clip takes every interval-th"
            )

    @property
    def of_store(self) -> StoreOptions:
        """How frames are stored."""
        return StoreOptions(self.stride, self.short_side, self.encoding, self.frames_per_record)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """How a preparation ended: an exit code, why in words, and the content of report.json.

    `page` is the report to be looked at.
    """

    code: int
    verdict: str
    report: dict
    page: Path


def prepare(
    videos: str | Path,
    annotations: Sequence[str | Path],
    out: str | Path,
    *,
    split: str,
    format: str | None = None,
    options: PrepareOptions | None = None,
    workers: int = 0,
    max_bad: float = 0.02,
    check: bool = False,
    allow_partial: bool = False,
    own: bool = False,
    thumbnails: int = 24,
    run_tasks: RunTasks | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Prepared:
    """Prepares a split into `out`, or only reports on it; continues what was interrupted.

    Args:
        videos: a folder; its videos may lie in folders below it.
        annotations: files of the formats of data/annotations; `format` may demand one of them.
        out: the prepared folder, made if absent.
        split: "train", "validation", "test" or another name; recorded with the result.
        max_bad: the largest share of the videos, and of the rows, that may be unusable.
        check: look at everything and report, but store no frame.
        allow_partial: accept fewer rows or videos than a benchmark has published; recorded.
        own: the annotations are nobody's benchmark, whatever their names look like.
        thumbnails: how many videos the report shows.
        workers, run_tasks: as those of `write_store`.
        progress: progress(title) returns the callback (done, total) of one part of the work.
        say: takes the line that tells what will be stored.

    Raises:
        PreparationError, AnnotationError, VideoFilesError: what is refused before any work.
        FrameStoreError: the frames cannot be stored (disk full).
    """
    options = options or PrepareOptions()
    _check(options, split, max_bad, thumbnails, workers)
    out = Path(out)
    progress = progress or (lambda title: lambda done, total: None)
    annotated = _read(annotations, format, own, split)
    asked = {example.video for example in annotated.examples}
    found = find_videos(videos, asked, aliases=annotated.aliases)
    check_folder(out, split, [*annotations, *found.files.values()])
    with alone(out, say):
        check_other_splits(out, annotated, split)
        stored = videos_of_other_splits(out, split, found, options.of_store) | found.files
        how = {"thumbnails": thumbnails, "short_side": options.short_side, "journal": out / LOOKED}
        looked = survey(found.files, workers=workers, progress=progress("look"), **how)
        findings = Findings(
            split, options.of_store, max_bad, allow_partial, annotated, found, looked
        )
        say(findings.plan(out, others=len(stored) - len(found.files)))
        if check:
            done = _reported(out, findings, None, *findings.verdict(looked.bad), check=True)
        else:
            how = {"workers": workers, "run_tasks": run_tasks, "progress": progress("decode")}
            done = _finish(out, findings, stored, options, how)
        (out / LOOKED).unlink(missing_ok=True)
        return done


def _finish(
    out: Path, findings: Findings, videos: Mapping[str, Path], options: PrepareOptions, how: dict
) -> Prepared:
    """Stores the frames, and writes the split where nothing speaks against training from it."""
    code, verdict = findings.verdict(findings.survey.bad)
    if code != DONE:
        return _reported(out, findings, None, code, verdict)
    _reported(out, findings, None, REFUSED, _UNFINISHED)  # what is known is not lost
    store = _store(out, findings, videos, options, how)
    code, verdict = findings.verdict(store.bad)
    if code == DONE:
        examples, info = findings.split_files(store, options.interval)
        unusable = out / (findings.split + UNUSABLE)
        unusable.unlink(missing_ok=True)
        if lost := findings.unusable(store):
            write_bytes(unusable, lost)
        write_json(out / (findings.split + INFO), info)
        write_bytes(out / f"{findings.split}.json", examples)
    return _reported(out, findings, store, code, "; ".join(filter(None, [verdict, left_over(out)])))


def _store(
    out: Path, findings: Findings, videos: Mapping[str, Path], options: PrepareOptions, how: dict
) -> FrameStore:
    """The frames of `videos` in OUT/frames; those that are there stay until all new ones are."""
    frames, following = out / FRAMES, out / FOLLOWING
    if holds(frames, videos, options.of_store):
        store = FrameStore(frames)
    else:
        mends = is_of(frames, videos, options.of_store)  # a damaged shard was deleted
        replaces = not mends and any((f / INDEX).is_file() for f in (frames, following))
        if replaces:
            check_foreign(frames)
        try:
            place = following if replaces else frames
            store = write_store(place, videos, options.of_store, **how)
        except StoreWriteError as error:
            raise StoreWriteError(f"{error}\n{findings.room(out)}") from error
        # First: they never name frames that are gone.
        for name in (f"{findings.split}.json", findings.split + INFO):
            (out / name).unlink(missing_ok=True)
        if replaces:
            (frames / INDEX).unlink(missing_ok=True)  # nor does an index
            shutil.rmtree(frames, ignore_errors=True)
            following.rename(frames)
    if not is_described(frames, data_dir=out / TFDS):  # it may have been killed before
        write_metadata(frames, data_dir=out / TFDS)
    return store


def _reported(
    out: Path,
    findings: Findings,
    store: FrameStore | None,
    code: int,
    verdict: str,
    *,
    check: bool = False,
) -> Prepared:
    report = findings.report(store, code, verdict) | {"check": check}
    page = preparation_page.render(report, findings).encode("utf-8", "backslashreplace")
    names = pages(out, findings.split, check=check, done=code == DONE)
    for name in names:
        write_json(out / f"{name}.json", report)
        write_bytes(out / f"{name}.html", page)
    return Prepared(code, verdict, report, out / f"{names[0]}.html")


def _check(
    options: PrepareOptions, split: str, max_bad: float, thumbnails: int, workers: int
) -> None:
    options.check()
    if split in _MEANT or not _SPLIT.fullmatch(split) or split in (FRAMES, REPORT, CHECK):
        wanted = _MEANT.get(split, "train, validation or test")
        raise PreparationError(f"--split={split}: expected {wanted}")
    if not 0 <= max_bad <= 1 or thumbnails < 0:
        raise PreparationError(
            f"--max_bad={max_bad} --thumbnails={thumbnails}: expected a share from 0 to 1, and a "
            "number of at least 0"
        )
    if workers < 0:
        raise PreparationError(
            f"--workers={workers}: expected a number of processes, or 0 for this one alone"
        )


def _read(paths: Sequence[str | Path], format: str | None, own: bool, split: str) -> Annotations:
    """The annotations, where they are of the split that they are said to be of."""
    annotations = read(paths, format=format)
    if own:
        parts = tuple(dataclasses.replace(part, benchmark="") for part in annotations.parts)
        annotations = dataclasses.replace(annotations, parts=parts)
    for part in annotations.parts:
        if wrong := splits.contradiction(part, split):
            raise PreparationError(
                f"{', '.join(part.paths)}: {wrong}, and --split={split} was given; published "
                f"numbers differ in it. Give the split that the files hold, the files of {split}, "
                "or --own, where the annotations are your own"
            )
    return annotations
