"""report.html and report.md: our numbers beside the published ones, and where the model fails."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.record import encode_jpeg
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.experiments.report import document, plots, tables
from rvllm_jax.experiments.report.document import Heading, Part, Picture, Table, Text
from rvllm_jax.experiments.report.results import Scored, failures, read_results
from rvllm_jax.system.atomic import write_text

TITLE = "Evaluation"
_FRAMES, _HEIGHT = 6, 96  # of a failure's strip; pixels


def report(folders: Sequence[str | Path], *, most_failures: int = 12) -> tuple[Path, list[str]]:
    """Writes report.html and report.md into the first folder; returns it, and what lacks.

    Raises EvaluationError, or LinesError for files of lines that are broken.
    """
    found, notes = read_results(folders)
    if not found:
        raise EvaluationError("; ".join(notes))
    parts: list[Part] = [Text(note, warning=True) for note in notes]
    parts += _explained()
    for benchmark in dict.fromkeys(scored.benchmark for scored in found):
        own = [scored for scored in found if scored.benchmark == benchmark]
        parts += [Heading(f"{benchmark}"), *tables.comparison(benchmark, own)]
        parts += _chart(benchmark, own)
        parts += [Heading(f"{benchmark}: without videos of the training")]
        parts += tables.without_overlap(own)
        for scored in own:
            parts += _details(scored, most_failures)
    parts += [Heading("How it was made"), _made(found)]
    folder = Path(folders[0])
    for name, text in (
        ("report.md", document.markdown(TITLE, parts)),
        ("report.html", document.html(TITLE, parts)),
    ):
        write_text(folder / name, text, errors="replace")
    return folder, notes


def _explained() -> list[Part]:
    return [
        Text(
            "Every question is in every denominator: one that was not answered, since its video is "
            "missing or unreadable, or not judged, is wrong and scores 0; where facts are counted "
            "it is among the hallucinated. Intervals are 95 %, by drawing videos."
        )
    ]


def _details(scored: Scored, most: int) -> list[Part]:
    name = f"{scored.benchmark}, {scored.model}, judged by {scored.judge}, split {scored.split}"
    parts: list[Part] = [Heading(f"{name}: controls"), *tables.controls(scored)]
    types = tables.by_type(scored)
    if types:
        parts += [Heading(f"{name}: by type"), *types, *_types_chart(scored)]
    wrong = failures(scored, most)
    if wrong:
        parts += [Heading(f"{name}: {len(wrong)} failures"), *_failures(scored, wrong)]
    return parts


def _failures(scored: Scored, wrong) -> list[Part]:
    parts: list[Part] = []
    store = None
    if "frames" not in scored.info:  # predictions of another program
        parts.append(Text("The answers come without frames: no pictures."))
    else:
        try:
            store = FrameStore(scored.info["frames"])
        except FrameStoreError:
            parts.append(Text("The stored frames are no longer there: no pictures.", warning=True))
    for answer, verdict in wrong:
        if store and not answer["failed"] and (strip := _strip(store, answer["video"])):
            parts.append(Picture(f"frames of {answer['video']}", strip))
        said = answer["answer"] or f"(nothing: {answer['failed'] or 'an empty answer'})"
        score, overlap = verdict.get("score"), verdict.get("overlap")
        rows = [
            ("video", answer["video"]),
            ("question", answer["question"]),
            ("truth", answer["truth"]),
            ("answer", said),
        ]
        rows += [("score", f"{score:g}")] if score is not None else []
        if overlap is not None:
            rows.append(("facts in the reference", f"{100 * overlap:.0f} %"))
        parts.append(Table(("", answer["question_id"]), rows))
    return parts


def _strip(store: FrameStore, video: str) -> bytes:
    """A JPEG of some frames of a video beside each other; b"" where they cannot be read."""
    try:
        count = store.entry(video).num_frames
        places = np.unique(np.linspace(0, count - 1, _FRAMES).astype(int))
        frames = store.read(video, places)
    except FrameStoreError:
        return b""
    every = max(1, frames.shape[1] // _HEIGHT)
    joined = np.concatenate(list(frames[:, ::every, ::every]), axis=1)
    return encode_jpeg(np.ascontiguousarray(joined))


def _chart(benchmark: str, own: Sequence[Scored]) -> list[Part]:
    """A chart a judge: bars of different judges are never beside each other."""
    parts: list[Part] = []
    for judge, split in dict.fromkeys((scored.judge, scored.split) for scored in own):
        rows = []
        for scored in own:
            if (scored.judge, scored.split) != (judge, split) or not _known(scored.scores):
                continue
            rows.append((scored.model, scored.scores["accuracy"], False))
            for name, values in (scored.scores.get("controls") or {}).items():
                if _known(values):
                    rows.append((f"{scored.model}, {name}", values["accuracy"], True))
        if rows:
            title = f"{benchmark} {split}, judged by {judge}"
            parts.append(Picture(title, _percent_bars(title, rows)))
    return parts


def _types_chart(scored: Scored) -> list[Part]:
    types = scored.scores["by_type"].items()
    rows = [(name, v["accuracy"], False) for name, v in types if _known(v)]
    if len(rows) < 2:
        return []
    title = f"{scored.benchmark} {scored.split} by type, {scored.model}, judged by {scored.judge}"
    return [Picture(title, _percent_bars(title, rows))]


def _known(values: dict[str, Any]) -> bool:
    """Whether there is an accuracy to draw: none is where there are no questions or no verdicts."""
    return (values.get("accuracy") or {}).get("value") is not None


def _percent_bars(title: str, rows) -> bytes:
    scaled = [(name, _times(estimate, 100), control) for name, estimate, control in rows]
    return plots.bars(title, scaled, largest=100, unit="accuracy, %, with 95 % interval")


def _times(estimate: dict[str, Any], factor: float) -> dict[str, Any]:
    keys = ("value", "low", "high")
    return {k: None if estimate.get(k) is None else factor * estimate[k] for k in keys}


def _made(found: Sequence[Scored]) -> Table:
    heads = ("results", "model", "clips", "tokens an answer", "answered", "judge", "judged")
    rows = []
    for scored in found:
        info, judge = scored.info, scored.scores["judge"]
        told = (info.get("checkpoint") or {}).get("told") or info.get("model") or "-"
        clips = f"{info.get('clips', '-')} {info.get('fusion', '')}".strip()
        dates = " to ".join(dict.fromkeys(judge.get("dates") or [judge.get("date") or "-"]))
        rows.append(
            (str(scored.folder), str(told), clips, str(info.get("max_new", "-")),
             info.get("date", "-"), f"{judge['backend']}: {scored.judge}", dates)
        )  # fmt: skip
    return Table(heads, rows)
