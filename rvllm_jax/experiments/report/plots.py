"""Charts of the results page, and what every picture of a report has in common."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rvllm_jax.system.page import shorten

INK, GRID = "#3d4852", "#d5dbe1"
_OURS, _CONTROL = "#4878a8", "#b8902f"
_ROW = 0.34  # inches a bar
_LONGEST = 40  # characters of a bar's name

Bar = tuple[str, Mapping[str, Any], bool]  # name, an estimate in %, whether it is a control


def bars(title: str, rows: Sequence[Bar]) -> bytes:
    """A PNG with a bar an accuracy {"value", "low", "high"} in %, and its interval as a line."""
    figure = Figure(figsize=(9, 1.0 + _ROW * len(rows)), dpi=110, layout="constrained")
    axis = figure.subplots()
    for index, (_, estimate, control) in enumerate(rows):
        value = estimate["value"]
        axis.barh(index, value, color=_CONTROL if control else _OURS, height=0.62)
        low, high = estimate.get("low"), estimate.get("high")
        if low is not None and high is not None:
            axis.plot([low, high], [index, index], color=INK, linewidth=1.6, marker="|")
        # In figures too: a bar of 0 cannot be seen.
        right = dict(xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        axis.annotate(f"{value:.1f}", (max(value, high or 0), index), color=INK, **right)
    axis.set_yticks(range(len(rows)), [shorten(name, _LONGEST) for name, _, _ in rows])
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy, %, with 95 % interval")
    axis.set_title(title, loc="left", fontsize=11, parse_math=False)
    style(axis, grid="x")
    return png(figure)


def style(axis: Axes, grid: str) -> None:
    """Takes away what carries no number. grid: the axis whose lines stay, "x" or "y"."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis=grid, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def png(figure: Figure) -> bytes:
    """A figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
