"""A picture of the frames that a model sees of a video, each with its time."""

import numpy as np
from matplotlib.figure import Figure

from rvllm_jax.data.batches.loose_videos import VideoClips
from rvllm_jax.experiments.report import plots

_ACROSS = 10  # frames of a line
_INCH = 1.1  # of a frame's side
_LABEL = 0.2  # inches below a frame
_CLIPS = 25  # clips shown; all test clips of a video


def draw(clips: VideoClips, title: str) -> bytes:
    """A PNG. Of one clip every frame is shown; of several each has a line of its own, of up to ten
    of its frames, evenly spaced, and says how many of the test clips it is."""
    lines = _lines(clips)
    height = len(lines) * (_INCH + _LABEL) + 0.4
    figure = Figure(figsize=(_ACROSS * _INCH + 0.9, height), dpi=100)
    printable = "".join(c if c.isprintable() else "?" for c in title)
    figure.text(0.01, 1 - 0.12 / height, printable, va="top", fontsize=10, parse_math=False)
    for number, (clip, frames) in enumerate(lines):
        bottom = height - 0.4 - (number + 1) * (_INCH + _LABEL) + _LABEL
        if len(clips.frames) > 1:
            label = f"clip {clip + 1}\nx {clips.counts[clip]}"
            figure.text(0.02, (bottom + _INCH / 2) / height, label, va="center", fontsize=8)
        for index, frame in enumerate(frames):
            left = 0.7 + index * _INCH
            width, _ = figure.get_size_inches()
            box = (left / width, bottom / height, 0.96 * _INCH / width, 0.96 * _INCH / height)
            axis = figure.add_axes(box)
            axis.imshow(clips.frames[clip, frame], interpolation="nearest")
            axis.set_axis_off()
            time = f"{clips.times[clip, frame]:.2f} s"
            axis.text(0.5, -0.04, time, transform=axis.transAxes, ha="center", va="top", fontsize=7)
    return plots.png(figure)


def _lines(clips: VideoClips) -> list[tuple[int, np.ndarray]]:
    """(clip, its frames) of each line of the picture."""
    if len(clips.frames) == 1:
        frames = np.flatnonzero(clips.mask[0])
        return [(0, frames[at : at + _ACROSS]) for at in range(0, len(frames), _ACROSS)]
    lines = []
    for clip, mask in enumerate(clips.mask[:_CLIPS]):
        spread = np.linspace(0, mask.sum() - 1, _ACROSS).round().astype(int)
        lines.append((clip, np.unique(spread)))
    return lines
