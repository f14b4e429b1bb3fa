"""The report of a run: `report/` with curves, a sheet of answered clips, a table, and results.json.

results.json: `{"accuracy": {SPLIT: {"all": x, TYPE: x}}, "controls": {CONTROL: {"all": x, TYPE:
x}}, "counts": {SPLIT: {"all": n, TYPE: n}}, "seconds": {STAGE: s}}`; SPLIT is train, test or
heldout, CONTROL blind, shuffled or swapped. `recurring` is that of `evaluation.controls.only_seen`;
`unreadable_questions` {SPLIT: n} are those of `counts` whose frames could not be read, counted as
wrong; further keys are kept as they are.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from rvllm_jax.experiments.report.samples import Sample
from rvllm_jax.system.atomic import JsonError, dump_json, make_folder, read_json, write_together
from rvllm_jax.system.errors import HERE_AGAIN
from rvllm_jax.training import metrics

_RESULTS = "results.json"
_FOLDER = "report"
_ALL = "all"


def write(workdir: str | Path, results: Mapping[str, Any], samples: Sequence[Sample]) -> Path:
    """Writes the report into `workdir/report` and returns that folder.

    Files are replaced whole; results.json comes last, so that it stands for a complete report.

    Args:
      workdir: the working directory; curves.png is drawn from its metrics.jsonl.
      results: as the module describes; numbers that are not finite become null.
      samples: the clips of samples.png; without any there is no such file.

    Raises:
      ValueError: `results` lacks a part, or a table in it lacks "all".
    """
    # Matplotlib takes a fifth of all that is imported, which training would wait for at its start.
    from rvllm_jax.experiments.report import curves, sheet

    _check(results)
    folder = make_folder(Path(workdir) / _FOLDER, advice=HERE_AGAIN)
    records = metrics.read(Path(workdir) / "metrics.jsonl")
    text = dump_json(_finite(results), allow_nan=False, ensure_ascii=False)
    markdown = f"# Accuracy by question type\n\n{format_table(results)}\n"
    contents = {_RESULTS: text.encode(), "accuracy.md": markdown.encode()}
    contents["curves.png"] = curves.draw(records)
    if samples:
        contents["samples.png"] = sheet.draw(samples)
    else:
        (folder / "samples.png").unlink(missing_ok=True)
    write_together(folder, contents, synced=True, advice=HERE_AGAIN)
    return folder


def results_path(workdir: str | Path) -> Path:
    """Where the results of a run are."""
    return Path(workdir) / _FOLDER / _RESULTS


def read_results(workdir: str | Path) -> dict[str, Any] | None:
    """results.json of `workdir`; None where there is none, or, with a warning, a broken one, which
    its run makes again."""
    path = results_path(workdir)
    advice = "it is made again"
    try:
        results = read_json(path, absent={}, advice=advice)
    except JsonError as error:
        logging.warning("%s", error)
        return None
    parts = [key for key in ("accuracy", "asked", "made_with") if key in results]
    if results and not (
        "accuracy" in parts and all(isinstance(results[key], dict) for key in parts)
    ):
        logging.warning("%s: is no table of results; %s", path, advice)
        return None
    return results or None


def clear(workdir: str | Path) -> None:
    """Removes the report of an earlier run, its results.json first; other files stay."""
    folder = Path(workdir) / _FOLDER
    for name in (_RESULTS, "accuracy.md", "curves.png", "samples.png"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or holds what is another's
        folder.rmdir()


def format_table(results: Mapping[str, Any]) -> str:
    """The accuracy table, counts and seconds: Markdown, aligned so that it reads in a terminal.

    A row is a question type, a column a split or a control. The share of questions answered
    exactly is given with three digits; "-" where a split has no question of a type.
    """
    accuracy, controls, counts = results["accuracy"], results["controls"], results["counts"]
    columns = {**accuracy, **controls}
    kinds = [_ALL, *sorted({kind for table in columns.values() for kind in table} - {_ALL})]
    parts = [_grid(columns, kinds, ".3f")]
    asked = results.get("control_split")
    if controls and asked:
        parts.append(f"Controls ({', '.join(controls)}) ask the questions of {asked}.")
    if counts:
        parts += ["Questions asked:", _grid(counts, kinds, ",")]
    unreadable = {split: n for split, n in results.get("unreadable_questions", {}).items() if n}
    if unreadable:
        counted = ", ".join(f"{split} {count:,}" for split, count in unreadable.items())
        parts.append(f"Questions whose frames could not be read, counted as wrong: {counted}.")
    if results.get("recurring", {}).get("count"):
        parts.append(_recurring(results["recurring"]))
    seconds = results["seconds"]
    if seconds:
        stages = ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())
        parts.append(f"Seconds of training: {stages}; together {sum(seconds.values()):.0f}.")
    for name, loss in results.get("boundaries", {}).items():
        parts.append(
            f"Validation loss at {name} (step {loss['at']}): {loss['before']:.3f} before, "
            f"{loss['after']:.3f} at step {loss['step']}."
        )
    return "\n\n".join(parts)


def _recurring(recurring: Mapping[str, Any]) -> str:
    """The questions whose text occurs with different answers, so that only a look decides."""
    text = (
        f"Questions whose text recurs with different answers ({recurring['count']}): right "
        f"{recurring['plain']:.3f}, blind {recurring['blind']:.3f}"
    )
    if "swapped" in recurring:
        swapped = recurring["swapped"]
        text += (
            f"; with their videos swapped {swapped['changed']:.3f} of the answers change and "
            f"{swapped['follows']:.3f} are right about the video shown"
        )
    return text + "."


def _grid(columns: Mapping[str, Mapping[str, float]], kinds: Sequence[str], form: str) -> str:
    """A row a question type, a column a table of `columns`; numbers in the format `form`."""
    header = ["question type", *columns]
    rows = [
        [kind, *(format(of[kind], form) if kind in of else "-" for of in columns.values())]
        for kind in kinds
    ]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), "| " + " | ".join(rule) + " |", *map(line, rows)])


def _check(results: Mapping[str, Any]) -> None:
    for part in ("accuracy", "controls", "counts", "seconds"):
        if part not in results:
            raise ValueError(f"results lack {part!r}; they have {sorted(results)}")
    for part in ("accuracy", "controls", "counts"):
        for name, table in results[part].items():
            if _ALL not in table:
                raise ValueError(f"results[{part!r}][{name!r}] lacks {_ALL!r}: {sorted(table)}")


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
