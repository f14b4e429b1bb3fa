"""Curves of a run over its global steps, the stages marked."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from rvllm_jax.experiments.report import plots

_BANDS = ("#eef2f7", "#ffffff")  # behind the stages, in turn
_TRAIN, _VALIDATION = "#4878a8", "#d1603d"
_LINES = ("#4878a8", "#d1603d", "#5a9a68", "#8a6bb1", "#b8902f", "#6c757d", "#c2679a", "#3a9ea5")
_LOSSES = ("loss", "val_loss")

Record = Mapping[str, Any]


def draw(records: Sequence[Record]) -> bytes:
    """A PNG of the losses and, where there are any, of the values named `accuracy...`.

    Args:
      records: those of `training.metrics.read`: `{"step", "stage", "kind", NAME: number}`.
    """
    shares = sorted({name for record in records for name in record if "accuracy" in name})
    panels = 2 if shares else 1
    figure = Figure(figsize=(10, 1.2 + 3.4 * panels), dpi=110, layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _losses(axes[0], records)
    if shares:
        _shares(axes[1], records, shares)
    for number, axis in enumerate(axes):
        plots.style(axis, grid="y")
        _mark_stages(axis, records, named=number == 0)
    axes[-1].set_xlabel("global step (updates)")
    return plots.png(figure)


def _losses(axis: Axes, records: Sequence[Record]) -> None:
    axis.set_ylabel("loss a token (nats)")
    drawn = []
    for number, stage in enumerate(_stages(records)):
        steps, losses = _series(records, "train", "loss", stage)
        label = (number == 0 or None) and "training, each step logged"
        axis.plot(steps, losses, color=_TRAIN, alpha=0.3, linewidth=0.8, label=label)
        label = (number == 0 or None) and "training, running mean"
        axis.plot(steps, _smooth(losses), color=_TRAIN, linewidth=1.8, label=label)
        drawn += losses
    for name in _LOSSES:
        # One line through all stages: the boundary is where a reader wants to see it go on.
        steps, losses = _series(records, "validation", name)
        if steps:
            style = {"marker": "o", "markersize": 3.5, "linewidth": 1.4, "color": _VALIDATION}
            axis.plot(steps, losses, label="validation", **style)
            drawn += losses
    positive = [loss for loss in drawn if loss > 0]
    if positive and max(positive) > 20 * min(positive):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    if drawn:
        axis.legend(frameon=False, loc="upper right")


def _shares(axis: Axes, records: Sequence[Record], names: Sequence[str]) -> None:
    axis.set_ylabel("accuracy")
    axis.set_ylim(-0.02, 1.02)
    for number, name in enumerate(names):
        steps, values = _series(records, None, name)
        label = name.removeprefix("accuracy").strip("/_ ") or name
        total = label.split("/")[-1] in ("all", "accuracy")
        style = {"marker": "o", "markersize": 3.5, "linewidth": 2.6 if total else 1.4}
        color = "#222222" if total else _LINES[number % len(_LINES)]
        axis.plot(steps, values, label=label, color=color, **style)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _mark_stages(axis: Axes, records: Sequence[Record], *, named: bool) -> None:
    stages = _stages(records)
    ends = [max(r["step"] for r in records if r["stage"] == stage) for stage in stages]
    narrow = any(b - a < 0.1 * ends[-1] for a, b in itertools.pairwise([0, *ends]))
    start = 0
    for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        axis.axvspan(start, end, color=_BANDS[number % 2], zorder=0, linewidth=0)
        axis.axvline(end, color="#9aa5b1", linewidth=0.8, linestyle="--", zorder=1)
        if named:
            # Beside a narrow stage names take turns at two heights, so as not to touch.
            x, y = (start + end) / 2, 1.02 + (0.06 * (number % 2) if narrow else 0)
            look = {"fontweight": "bold", "color": plots.INK, "parse_math": False}
            frame = axis.get_xaxis_transform()
            axis.text(x, y, stage, transform=frame, ha="center", va="bottom", **look)
        start = end
    if start:
        axis.set_xlim(0, start)


def _stages(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["stage"] for record in records))


def _series(
    records: Sequence[Record], kind: str | None, name: str, stage: str | None = None
) -> tuple[list[int], list[float]]:
    """Steps and finite values of `name`."""
    points = [
        (record["step"], record[name])
        for record in records
        if name in record and kind in (None, record["kind"]) and stage in (None, record["stage"])
    ]
    points = sorted((step, value) for step, value in points if math.isfinite(value))
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: Sequence[float]) -> np.ndarray:
    """A centred running mean over about a twentieth of the points, one-sided at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    points = np.arange(len(values))
    first, last = np.maximum(points - half, 0), np.minimum(points + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
