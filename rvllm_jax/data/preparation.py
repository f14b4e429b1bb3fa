"""Videos and annotations in, a prepared folder out: frames, conversations, and a report of both.

A prepared folder OUT holds

  frames/            the frame store (data/frames.py); tfds/ links to it, for tfds.data_source
  SPLIT.json         the conversations in LLaVA's form, videos by their names in the store
  SPLIT.unusable.json  those whose video is missing or does not decode; absent where none
  SPLIT.info.json    where they come from: split, benchmark, counts, and whether they are partial
  report.html, .json what the last preparation found

SPLIT.json and SPLIT.info.json are written last, and only where nothing speaks against training
from them. Several splits may be prepared into one folder one after the other.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rvllm_jax.data import annotations as formats
from rvllm_jax.data import preparation_page, video_files
from rvllm_jax.data.annotations import Annotations, splits
from rvllm_jax.data.frame_writer import holds, read_report
from rvllm_jax.data.frames import StoreReport, write_store
from rvllm_jax.data.llava import read_llava
from rvllm_jax.data.preparation_report import DONE, REFUSED, Findings
from rvllm_jax.data.shards import (
    INDEX,
    StoreWriteError,
    Task,
    read_json,
    write_atomically,
)
from rvllm_jax.data.store_metadata import write_metadata
from rvllm_jax.data.video_files import VideoFiles
from rvllm_jax.data.video_survey import survey

FRAMES = "frames"  # in a prepared folder
INFO, UNUSABLE = ".info.json", ".unusable.json"  # there too, behind a split's name
FOLLOWING = "frames.following"  # a store that will take the place of FRAMES when it is finished
_UNFINISHED = "the frames are not all stored yet; start the same command again, it continues"
_SPLIT = re.compile(r"[a-z][a-z0-9_]*")
_MEANT = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}

Progress = Callable[[str], Callable[[int, int], None]]
RunTasks = Callable[[list[Task]], Iterator[dict]]


class PreparationError(ValueError):
    """A preparation that cannot be started as it was asked for; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
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
    def of_store(self) -> dict:
        """What `write_store` takes."""
        values = dataclasses.asdict(self)
        del values["interval"]
        return values


@dataclasses.dataclass(frozen=True)
class Prepared:
    """How a preparation ended: an exit code, why in words, and the content of report.json."""

    code: int
    verdict: str
    report: dict


def prepare(
    videos: str | Path,
    annotations: Sequence[str | Path],
    out: str | Path,
    *,
    split: str,
    format: str | None = None,
    options: Options | None = None,
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
        PreparationError, ConversationError, VideoFilesError: what is refused before any work.
        FrameStoreError: the frames cannot be stored (disk full).
    """
    options = options or Options()
    options.check()
    _check(split, max_bad, thumbnails)
    out = Path(out)
    progress = progress or (lambda title: lambda done, total: None)
    read = _read(annotations, format, own, split)
    _check_other_splits(out, read, split)
    found = video_files.find(videos, {c.video for c in read.conversations}, aliases=read.aliases)
    stored = dict(found.files) | _videos_of_other_splits(out, split, found, options)
    how = {"workers": workers, "progress": progress("look")}
    looked = survey(found.files, thumbnails=thumbnails, short_side=options.short_side, **how)
    findings = Findings(split, options.of_store, max_bad, allow_partial, read, found, looked)
    _make(out)
    say(findings.plan(out, others=len(stored) - len(found.files)))
    code, verdict = findings.verdict(looked.bad)
    if check or code != DONE:
        return _reported(out, findings, None, code, verdict)
    _reported(out, findings, None, REFUSED, _UNFINISHED)  # what is known is not lost
    how |= {"run_tasks": run_tasks, "progress": progress("decode")}
    store = _store(out, findings, stored, options, how)
    return _finish(out, findings, store, options.interval)


def _finish(out: Path, findings: Findings, store: StoreReport, interval: int) -> Prepared:
    code, verdict = findings.verdict(store.bad)
    if code == DONE:
        conversations, info = findings.split_files(store, interval)
        unusable = out / (findings.split + UNUSABLE)
        unusable.unlink(missing_ok=True)
        if lost := findings.unusable(store):
            write_atomically(unusable, lost)
        write_atomically(out / (findings.split + INFO), _json(info))
        write_atomically(out / f"{findings.split}.json", conversations)
    return _reported(out, findings, store, code, verdict)


def _store(
    out: Path, findings: Findings, videos: Mapping[str, Path], options: Options, how: dict
) -> StoreReport:
    """The frames of `videos` in OUT/frames; those that are there stay until all new ones are."""
    frames, following = out / FRAMES, out / FOLLOWING
    if holds(frames, videos, **options.of_store):
        return read_report(frames)
    replaces = any((folder / INDEX).is_file() for folder in (frames, following))
    try:
        store = write_store(following if replaces else frames, videos, **how, **options.of_store)
    except StoreWriteError as error:
        raise StoreWriteError(f"{error}\n{findings.room(out)}") from error
    # First: they never name frames that are gone.
    for name in (f"{findings.split}.json", findings.split + INFO):
        (out / name).unlink(missing_ok=True)
    if replaces:
        shutil.rmtree(frames, ignore_errors=True)
        following.rename(frames)
    write_metadata(frames, data_dir=out / "tfds")
    return store


def _reported(
    out: Path, findings: Findings, store: StoreReport | None, code: int, verdict: str
) -> Prepared:
    report = findings.report(store, code, verdict)
    write_atomically(out / "report.json", _json(report))
    page = preparation_page.render(report, findings)
    write_atomically(out / "report.html", page.encode("utf-8", "backslashreplace"))
    return Prepared(code, verdict, report)


def _check(split: str, max_bad: float, thumbnails: int) -> None:
    if split in _MEANT or not _SPLIT.fullmatch(split) or split in (FRAMES, "report"):
        wanted = _MEANT.get(split, "train, validation or test")
        raise PreparationError(f"--split={split}: expected {wanted}")
    if not 0 <= max_bad <= 1 or thumbnails < 0:
        raise PreparationError(
            f"--max_bad={max_bad} --thumbnails={thumbnails}: expected a share from 0 to 1, and a "
            "number of at least 0"
        )


def _read(paths: Sequence[str | Path], format: str | None, own: bool, split: str) -> Annotations:
    """The annotations, where they are of the split that they are said to be of."""
    read = formats.read(paths, format=format)
    if own:
        parts = tuple(dataclasses.replace(part, benchmark="") for part in read.parts)
        read = dataclasses.replace(read, parts=parts)
    _check_split(read, split)
    return read


def _check_split(read: Annotations, split: str) -> None:
    for part in read.parts:
        found = splits.contradiction(part, split)
        if found:
            raise PreparationError(
                f"{', '.join(part.paths)}: {found}, and --split={split} was given; published "
                f"numbers differ in it. Give the split that the files hold, the files of {split}, "
                "or --own, where the annotations are your own"
            )


def _check_other_splits(out: Path, read: Annotations, split: str) -> None:
    """No question of a benchmark is of two of its splits, whatever its owner may make of them."""
    if split not in splits.SPLITS:
        return
    asked = {c.id for part in read.parts if part.benchmark for c in part.conversations}
    benchmarks = {part.benchmark for part in read.parts if part.benchmark}
    for path in sorted(out.glob(f"*{INFO}")) if asked else ():
        info = read_json(path)
        other = info.get("split")
        rows = out / f"{other}.json"
        own = {part.get("benchmark") for part in info.get("annotations", [])}
        others = splits.SPLITS - {split}
        if other not in others or benchmarks.isdisjoint(own) or not rows.is_file():
            continue
        both = sorted(asked & {c.id for c in read_llava(rows)})
        if both:
            raise PreparationError(
                f"{out}: its split {other} has {len(both):,} of the questions that --split={split} "
                f"was given for, the first {both[0]!r}; a question is of one split. Give the right "
                "split, prepare into a folder of its own, or give --own"
            )


def _videos_of_other_splits(
    out: Path, split: str, found: VideoFiles, options: Options
) -> dict[str, Path]:
    """The videos that other splits prepared into `out` need: they stay in its frames."""
    videos: dict[str, Path] = {}
    for path in sorted(out.glob(f"*{INFO}")):
        if path.name == split + INFO:
            continue
        info = read_json(path)
        for name, given in info.get("files", {}).items():
            videos[name] = Path(given)
            if name in found.files and found.files[name].resolve() != Path(given).resolve():
                raise PreparationError(
                    f"{out}: its split {info['split']} has another video {name!r}, {given}; "
                    "prepare this split into a folder of its own"
                )
        gone = [given for given in info.get("files", {}).values() if not Path(given).is_file()]
        if gone:  # they would be stored anew with those of this split
            raise PreparationError(
                f"{out}: {len(gone)} videos of its split {info['split']} are no longer there, the "
                f"first {gone[0]}, and its frames would be lost; bring them back, or prepare this "
                "split into a folder of its own"
            )
        if info.get("options", {}).get("store") not in (None, options.of_store):
            raise PreparationError(
                f"{out}: its split {info['split']} is stored with {info['options']['store']}, "
                f"asked for is {options.of_store}; give the same, or prepare this split into a "
                "folder of its own"
            )
    return videos


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreparationError(f"--out={out}: cannot be made ({error.strerror})") from error


def _json(value: dict) -> bytes:
    return json.dumps(value, indent=1).encode()
