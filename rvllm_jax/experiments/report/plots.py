"""Charts of the results page."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_OURS, _CONTROL, _TEXT = "#4878a8", "#b8902f", "#3d4852"
_ROW = 0.34  # inches a bar

Bar = tuple[str, Mapping[str, Any], bool]  # name, an estimate, whether it is a control


def bars(title: str, rows: Sequence[Bar], *, largest: float, unit: str) -> bytes:
    """A PNG with a bar an estimate {"value", "low", "high"}, and its interval as a line."""
    figure = Figure(figsize=(9, 1.0 + _ROW * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for place, (_, estimate, control) in enumerate(rows):
        value = estimate["value"]
        axis.barh(place, value, color=_CONTROL if control else _OURS, height=0.62)
        low, high = estimate.get("low"), estimate.get("high")
        if low is not None and high is not None:
            axis.plot([low, high], [place, place], color=_TEXT, linewidth=1.6, marker="|")
        # Told in figures too: a bar of 0 cannot be seen.
        right = dict(xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        axis.annotate(f"{value:.1f}", (max(value, high or 0), place), color=_TEXT, **right)
    axis.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows])
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.invert_yaxis()
    axis.set_xlim(0, largest)
    axis.set_xlabel(unit)
    axis.set_title(title, loc="left", fontsize=11, parse_math=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="x", color="#d5dbe1", linewidth=0.6)
    axis.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _short(name: str, longest: int = 40) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
