import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from rvllm_jax.experiments.report import curves


def pixels(png):
    """The picture as whole numbers, uint8[H, W, 3]."""
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def has(png, colour):
    return bool((pixels(png) == (np.array(to_rgb(colour)) * 255).round()).all(-1).any())


def record(step, stage, kind="train", **values):
    return {"step": step, "stage": stage, "kind": kind, **values}


RUN = [record(s, "sgd" if s <= 20 else "adamw", loss=3.0 - s / 20) for s in range(1, 41)]


def test_curves_mark_every_stage_and_end_with_the_last_step():
    one, two = curves.draw(RUN[:20]), curves.draw(RUN)
    band = "#ffffff"  # of the second stage, within the axes
    middle = pixels(two).shape[0] // 2
    right = int(pixels(two).shape[1] * 0.75)
    assert (pixels(two)[middle, right] == (np.array(to_rgb(band)) * 255)).all()
    assert not (pixels(one)[middle, right] == (np.array(to_rgb(band)) * 255)).all()


def test_curves_draw_training_validation_and_accuracy_each_where_it_exists():
    validation = [record(s, "sgd", "validation", loss=2.0) for s in (10, 20)]
    accuracy = [record(s, "sgd", "evaluation", **{"accuracy/all": 0.5}) for s in (10, 20)]
    line, dots = curves._TRAIN, curves._VALIDATION
    assert has(curves.draw(RUN), line)
    assert not has(curves.draw(RUN), dots)
    assert has(curves.draw(RUN + validation), dots)
    plain, both = pixels(curves.draw(RUN)), pixels(curves.draw(RUN + accuracy))
    assert both.shape[0] > plain.shape[0]
    colour = [record(s, "sgd", "evaluation", **{"accuracy/colour": s / 20}) for s in (10, 20)]
    assert has(curves.draw(colour), curves._LINES[0])


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1, "sgd", loss=math.nan)],
        [record(1, "$\\frac{$", loss=0.0), record(2, "$\\frac{$", loss=math.inf)],
        [record(0, "language", "evaluation", **{"accuracy/all": 0.0})],
    ],
)
def test_curves_of_next_to_nothing(records):
    assert pixels(curves.draw(records)).shape[2] == 3


def test_what_is_not_finite_is_left_out_of_the_curves():
    records = [record(s, "sgd", loss=v) for s, v in ((1, 2.0), (2, math.nan), (3, math.inf))]
    assert curves._series(records, "train", "loss") == ([1], [2.0])


def test_smoothing_keeps_the_mean_of_a_straight_line_and_both_ends_defined():
    assert np.allclose(curves._smooth([2.0] * 100), 2.0)
    line = np.arange(200.0)
    assert np.allclose(curves._smooth(line)[5:-5], line[5:-5])
    assert np.allclose(curves._smooth([1.0, 3.0]), [1.0, 3.0])
    assert len(curves._smooth([])) == 0
