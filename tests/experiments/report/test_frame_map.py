import io

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from rvllm_jax.experiments.report import frame_map

FRAMES = np.zeros((3, 8, 8, 3), np.uint8)
FRAMES[1] = (255, 0, 0)


def pixels(values, labels, **about):
    png = frame_map.draw(values, FRAMES, labels, **about)
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def columns_of(picture, colour):
    """Where in the picture's width a colour is seen."""
    return np.flatnonzero((np.abs(picture - np.asarray(colour, float)) < 2).all(-1).any(0))


def test_each_column_stands_under_its_frame():
    values = np.array([[0.0, 1.0, 0.0]])
    picture = pixels(values, ["a $ token\n"], title="$\\frac{$", unit="share")
    most = np.array(colormaps["viridis"](1.0)[:3]) * 255
    frame, cell = columns_of(picture, (255, 0, 0)), columns_of(picture[:, :-150], most)
    assert len(frame) and abs(frame[0] - cell[0]) <= 3 and abs(frame[-1] - cell[-1]) <= 3


def test_what_does_not_go_together_is_refused():
    for values, labels in ((np.ones((1, 2)), "a"), (np.ones((2, 3)), "a"), (np.ones((0, 3)), "")):
        with pytest.raises(ValueError, match="labels and"):
            frame_map.draw(values, FRAMES, labels)
