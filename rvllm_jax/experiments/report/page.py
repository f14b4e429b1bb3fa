"""report.html and report.md: our numbers beside the published ones, and where the model fails."""

from collections.abc import Iterator, Sequence
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
from rvllm_jax.system.lock import locked

_FRAMES, _HEIGHT = 6, 96  # of a failure's strip; pixels
_DENOMINATORS = (
    "Every question is in every denominator: one that was not answered, since its video is missing "
    "or unreadable, or not judged, is wrong and scores 0; where facts are counted it is among the "
    "hallucinated. Intervals are 95 %, by drawing videos."
)


def report(folders: Sequence[str | Path], *, most_failures: int = 12) -> tuple[Path, list[str]]:
    """Writes report.html and report.md into the first folder; returns it, and what lacks.

    Raises EvaluationError, or LinesError for files of lines that are broken.
    """
    results, notes = read_results(folders)
    if not results:
        raise EvaluationError("; ".join(notes))
    parts: list[Part] = [*(Text(note, warning=True) for note in notes), Text(_DENOMINATORS)]
    for benchmark in dict.fromkeys(scored.benchmark for scored in results):
        group = [scored for scored in results if scored.benchmark == benchmark]
        parts += [Heading(benchmark), *tables.comparison(benchmark, group)]
        parts += _charts(benchmark, group)
        parts += [Heading(f"{benchmark}: without videos of the training")]
        parts.append(tables.without_overlap(group))
        for scored in group:
            parts += _details(scored, most_failures)
    parts += [Heading("How it was made"), tables.made(results)]
    with locked(folders[0], advice="name another folder first"):
        document.write(Path(folders[0]), "Evaluation", parts)
    return Path(folders[0]), notes


def _details(scored: Scored, most: int) -> Iterator[Part]:
    name = f"{scored.benchmark}, {scored.model}, judged by {scored.judge}, split {scored.split}"
    yield Heading(f"{name}: controls")
    yield from tables.controls(scored)
    if types := tables.by_type(scored):
        yield Heading(f"{name}: by type")
        yield types
        yield from _types_chart(scored)
    if wrong := failures(scored, most):
        yield Heading(f"{name}: {len(wrong)} failures")
        yield from _failures(scored, wrong)


def _failures(scored: Scored, wrong: Sequence[tuple[dict, dict]]) -> Iterator[Part]:
    store = None
    if "frames" not in scored.info:  # predictions of another program
        yield Text("The answers come without frames: no pictures.")
    else:
        try:
            store = FrameStore(scored.info["frames"])
        except FrameStoreError:
            yield Text("The stored frames are no longer there: no pictures.", warning=True)
    for answer, verdict in wrong:
        if store and not answer["failed"] and (strip := _strip(store, answer["video"])):
            yield Picture(f"frames of {answer['video']}", strip)
        text = answer["answer"] or f"(nothing: {answer['failed'] or 'an empty answer'})"
        rows = [
            *((name, answer[name]) for name in ("video", "question", "truth")),
            ("answer", text),
        ]
        if verdict.get("score") is not None:
            rows.append(("score", f"{verdict['score']:g}"))
        if verdict.get("overlap") is not None:
            rows.append(("facts in the reference", f"{100 * verdict['overlap']:.0f} %"))
        yield Table(("", answer["question_id"]), rows)


def _strip(store: FrameStore, video: str) -> bytes:
    """A JPEG of some frames of a video beside each other; b"" where they cannot be read."""
    try:
        count = store.entry(video).num_frames
        frames = store.read(video, np.unique(np.linspace(0, count - 1, _FRAMES).astype(int)))
    except FrameStoreError:
        return b""
    every = max(1, frames.shape[1] // _HEIGHT)
    joined = np.concatenate(list(frames[:, ::every, ::every]), axis=1)
    return encode_jpeg(np.ascontiguousarray(joined))


def _charts(benchmark: str, group: Sequence[Scored]) -> Iterator[Picture]:
    """A chart a judge: bars of different judges are never beside each other."""
    for judge, split in dict.fromkeys((scored.judge, scored.split) for scored in group):
        bars: list[plots.Bar] = []
        for scored in group:
            if (scored.judge, scored.split) != (judge, split) or not _known(scored.scores):
                continue
            bars.append((scored.model, _percent(scored.scores), False))
            for name, values in (scored.scores.get("controls") or {}).items():
                if _known(values):
                    bars.append((f"{scored.model}, {name}", _percent(values), True))
        if bars:
            title = f"{benchmark} {split}, judged by {judge}"
            yield Picture(title, plots.bars(title, bars))


def _types_chart(scored: Scored) -> Iterator[Picture]:
    types = scored.scores["by_type"].items()
    bars = [(name, _percent(values), False) for name, values in types if _known(values)]
    if len(bars) > 1:
        title = (
            f"{scored.benchmark} {scored.split} by type, {scored.model}, judged by {scored.judge}"
        )
        yield Picture(title, plots.bars(title, bars))


def _known(values: dict[str, Any]) -> bool:
    """Whether there is an accuracy to draw: none is where there are no questions or no verdicts."""
    return (values.get("accuracy") or {}).get("value") is not None


def _percent(values: dict[str, Any]) -> dict[str, float | None]:
    estimate = values["accuracy"]
    keys = ("value", "low", "high")
    return {key: None if estimate.get(key) is None else 100 * estimate[key] for key in keys}
