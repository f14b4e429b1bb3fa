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
import functools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rvllm_jax.data.annotations.llava import INFO
from rvllm_jax.data.annotations.read import Annotations, read
from rvllm_jax.data.annotations.split import MEANT, refusal, without_benchmark
from rvllm_jax.data.prepare.find import find_videos
from rvllm_jax.data.prepare.findings import DONE, REFUSED, Findings
from rvllm_jax.data.prepare.folder import (
    CHECK,
    FOLLOWING,
    LOOKED,
    REPORT,
    TFDS,
    UNUSABLE,
    alone,
    check_folder,
    check_other_splits,
    left_over,
    pages,
    videos_of_other_splits,
)
from rvllm_jax.data.prepare.options import PreparationError, PrepareOptions
from rvllm_jax.data.prepare.page import render
from rvllm_jax.data.prepare.survey import survey
from rvllm_jax.data.store.metadata import is_described, write_metadata
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FRAMES, INDEX, StoreWriteError, Task
from rvllm_jax.data.store.writer import check_foreign, holds, holds_only, write_store
from rvllm_jax.system.atomic import write_bytes, write_json
from rvllm_jax.system.file_layout import PREPARED

_UNFINISHED = "the frames are not all stored yet; start the same command again, it continues"
_SPLIT = re.compile(r"[a-z][a-z0-9_]*")

Progress = Callable[[str], Callable[[int, int], None]]
RunTasks = Callable[[list[Task]], Iterator[dict]]


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
    split: str,
    options: PrepareOptions | None = None,
    *,
    run_tasks: RunTasks | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Prepared:
    """Prepares a split into `out`, or only reports on it; continues what was interrupted.

    Args:
        videos: a folder; its videos may lie in folders below it.
        annotations: files of the formats of data/annotations.
        out: the prepared folder, made if absent.
        split: "train", "validation", "test" or another name; recorded with the result.
        run_tasks: as that of `write_store`.
        progress: progress(title) returns the callback (done, total) of one part of the work.
        say: takes the line about what will be stored.

    Raises:
        PreparationError, AnnotationError, VideoFilesError: what is refused before any work.
        FrameStoreError: the frames cannot be stored (disk full).
    """
    options = options or PrepareOptions()
    options.validate()
    _check_split(split)
    out = Path(out)
    progress = progress or (lambda title: lambda done, total: None)
    annotated = _read(annotations, split, options)
    named = {example.video for example in annotated.examples}
    videos = find_videos(videos, named, aliases=annotated.aliases)
    check_folder(out, split, [*annotations, *videos.files.values()])
    with alone(out, say):
        check_other_splits(out, annotated, split)
        stored = videos_of_other_splits(out, split, videos, options.store) | videos.files
        looked = survey(
            videos.files,
            thumbnails=options.thumbnails,
            short_side=options.short_side,
            workers=options.workers,
            progress=progress("look"),
            journal=out / LOOKED,
        )
        findings = Findings(split, options, annotated, videos, looked)
        say(findings.plan(out, others=len(stored) - len(videos.files)))
        if options.check:
            done = _report(out, findings, None, *findings.verdict(looked.bad))
        else:
            how = dict(run_tasks=run_tasks, progress=progress("decode"))
            done = _finish(out, findings, stored, functools.partial(write_store, **how))
        (out / LOOKED).unlink(missing_ok=True)
        return done


def _finish(
    out: Path, findings: Findings, videos: Mapping[str, Path], write: Callable[..., FrameStore]
) -> Prepared:
    """Stores the frames, and writes the split where nothing speaks against training from it.

    write: `write_store`, with what its caller says of tasks and progress.
    """
    code, verdict = findings.verdict(findings.survey.bad)
    if code != DONE:
        return _report(out, findings, None, code, verdict)
    _report(out, findings, None, REFUSED, _UNFINISHED)  # what is known is not lost
    store = _store(out, findings, videos, write)
    code, verdict = findings.verdict(store.bad)
    if code == DONE:
        examples, unusable, info = findings.split_files(store)
        path = out / (findings.split + UNUSABLE)
        path.unlink(missing_ok=True)
        if unusable:
            write_bytes(path, unusable)
        write_json(out / (findings.split + INFO), PREPARED.stamp(info))
        write_bytes(out / f"{findings.split}.json", examples)
    return _report(out, findings, store, code, "; ".join(filter(None, [verdict, left_over(out)])))


def _store(
    out: Path, findings: Findings, videos: Mapping[str, Path], write: Callable[..., FrameStore]
) -> FrameStore:
    """The frames of `videos` in OUT/frames; those that are there stay until all new ones are."""
    frames, following = out / FRAMES, out / FOLLOWING
    options = findings.options.store
    if holds(frames, videos, options):
        store = FrameStore(frames)
    else:
        mends = holds_only(frames, videos, options)  # a damaged shard was deleted
        replaces = not mends and any((f / INDEX).is_file() for f in (frames, following))
        if replaces:
            check_foreign(frames)
        try:
            place = following if replaces else frames
            store = write(place, videos, options, workers=findings.options.workers)
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


def _report(
    out: Path, findings: Findings, store: FrameStore | None, code: int, verdict: str
) -> Prepared:
    report = findings.report(store, code, verdict)
    page = render(report, findings).encode("utf-8", "backslashreplace")
    names = pages(out, findings.split, check=findings.options.check, done=code == DONE)
    for name in names:
        write_json(out / f"{name}.json", report)
        write_bytes(out / f"{name}.html", page)
    return Prepared(code, verdict, report, out / f"{names[0]}.html")


def _check_split(split: str) -> None:
    if split in MEANT or not _SPLIT.fullmatch(split) or split in (FRAMES, REPORT, CHECK):
        wanted = MEANT.get(split, "train, validation or test")
        raise PreparationError(f"--split={split}: expected {wanted}")


def _read(paths: Sequence[str | Path], split: str, options: PrepareOptions) -> Annotations:
    """The annotations, where they are of the split that they are said to be of."""
    annotations = read(paths, format=options.format)
    if options.no_benchmark:
        annotations = without_benchmark(annotations)
    if wrong := refusal(annotations.parts, split):
        raise PreparationError(wrong)
    return annotations
