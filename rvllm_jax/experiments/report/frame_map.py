"""A map of numbers under the frames that they are of."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rvllm_jax.experiments.report import plots

_WIDTH = 8.4  # inches of all frames
_ROW = 0.32  # inches, the least of one row


def draw(
    values: np.ndarray,
    frames: np.ndarray,
    labels: Sequence[str],
    *,
    title: str = "",
    unit: str = "",
) -> bytes:
    """A PNG: the frames beside each other, and under each its column of `values`.

    Args:
      values: float[R, T]; colours run from their least to their greatest.
      frames: uint8[T, H, W, 3].
      labels: R texts, of the rows.
      title: above the frames. unit: of the values, beside their scale.

    Raises:
      ValueError: the three do not have as many rows and frames as each other.
    """
    R, T = values.shape
    if len(labels) != R or len(frames) != T or R < 1 or T < 1:
        raise ValueError(
            f"{R} x {T} values need {R} labels and {T} frames, at least 1 of each; got "
            f"{len(labels)} and {len(frames)}"
        )
    heights = [_WIDTH / T * frames.shape[1] / frames.shape[2], max(R * _ROW, 0.6)]
    figure = Figure(figsize=(_WIDTH + 2.6, sum(heights) + 1.0), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    above.imshow(np.concatenate(list(frames), axis=1), extent=(-0.5, T - 0.5, 0, 1), aspect="auto")
    above.set_axis_off()
    above.set_title(title, fontsize=11, parse_math=False)
    drawn = below.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    # Not parsed as mathematics: a token may be "$".
    below.set_yticks(range(R), [_shown(label) for label in labels], parse_math=False)
    below.set_xticks(range(T))
    below.set_xlabel("frame of the clip")
    figure.colorbar(drawn, ax=[above, below], label=unit, shrink=0.9)
    return plots.png(figure)


def _shown(label: str) -> str:
    return "".join(c if c.isprintable() else " " for c in label)[:24]
