"""A sheet of clips with question, reference and answer."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rvllm_jax.evaluation.answers.exact_match import exact
from rvllm_jax.experiments.report import plots
from rvllm_jax.experiments.report.samples import Sample

_RIGHT, _WRONG, _TEXT, _PALE = "#2e7d46", "#c0392b", "#22292f", "#6c757d"
_SHOWN = 8  # frames of a clip
_WIDTH = 8.4  # inches of one clip's row
_LINE = 0.2  # inches of one line of text
_LETTERS = 92  # that fit on a line
_MOST_LINES = 4  # of one text; what is longer is cut, with an ellipsis


def draw(samples: Sequence[Sample]) -> bytes:
    """A PNG with a row a sample (two rows beside each other from five samples on).

    A row shows up to 8 frames, evenly spaced, and under them question, reference and answer; the
    answer is green when it counts as right (`exact_match.exact`) and red otherwise.
    """
    columns = 2 if len(samples) > 4 else 1
    lines = -(-len(samples) // columns)
    strips = [_strip(sample.frames) for sample in samples]
    texts = [_texts(sample) for sample in samples]
    heights = []
    for line in range(lines):
        indices = range(line * columns, min((line + 1) * columns, len(samples)))
        pictures = max(_WIDTH * strips[i].shape[0] / strips[i].shape[1] for i in indices)
        text = max(sum(t.count("\n") + 1 for t, _ in texts[i]) for i in indices) * _LINE + 0.4
        heights += [pictures, text]
    figure = Figure(figsize=(columns * (_WIDTH + 0.4), sum(heights) + 0.1), dpi=100)
    margins = {"left": 0.015, "right": 0.985, "bottom": 0.0, "top": 1 - 0.1 / sum(heights)}
    grid = figure.add_gridspec(
        2 * lines, columns, height_ratios=heights, hspace=0, wspace=0.03, **margins
    )
    for index, (strip, text) in enumerate(zip(strips, texts, strict=True)):
        line, column = divmod(index, columns)
        axis = figure.add_subplot(grid[2 * line, column])
        axis.imshow(strip, interpolation="nearest", aspect="equal", rasterized=True)
        axis.set_anchor("SW")
        axis.set_axis_off()
        _write(figure.add_subplot(grid[2 * line + 1, column]), text, heights[2 * line + 1])
    return plots.png(figure)


def _strip(frames: np.ndarray) -> np.ndarray:
    """Up to 8 frames beside each other, with white between them; always as wide as 8 frames."""
    chosen = frames[np.unique(np.linspace(0, len(frames) - 1, _SHOWN).round().astype(int))]
    _, height, width, _ = chosen.shape
    gap = max(1, width // 24)
    strip = np.full((height, _SHOWN * (width + gap) - gap, 3), 255, np.uint8)
    for index, frame in enumerate(chosen):
        strip[:, index * (width + gap) :][:, :width] = frame
    return strip


def _texts(sample: Sample) -> list[tuple[str, str]]:
    """The lines under a clip, each with its colour."""
    right = exact(sample.answer, sample.reference)
    about = f"{sample.split}, {sample.kind}" if sample.kind else sample.split
    mark, colour = ("right", _RIGHT) if right else ("wrong", _WRONG)
    return [
        (_wrap(f"{sample.question}  ({about})"), _TEXT),
        (_wrap(f"reference: {sample.reference}"), _PALE),
        (_wrap(f"answer ({mark}): {sample.answer.strip() or 'nothing'}"), colour),
    ]


def _wrap(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return "\n".join(
        textwrap.wrap(printable, _LETTERS, max_lines=_MOST_LINES, placeholder=" …") or [""]
    )


def _write(axis: Axes, texts: Sequence[tuple[str, str]], height: float) -> None:
    axis.set_axis_off()
    y = 1 - 0.08 / height
    for text, colour in texts:
        # Not parsed as mathematics: a user's text may hold "$".
        style = {"fontsize": 11, "color": colour, "va": "top", "parse_math": False}
        weight = "bold" if colour in (_RIGHT, _WRONG) else "normal"
        axis.text(0, y, text, transform=axis.transAxes, fontweight=weight, **style)
        y -= (text.count("\n") + 1) * _LINE / height
