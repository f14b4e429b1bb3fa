import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from rvllm_jax.experiments.report import sheet
from rvllm_jax.experiments.report.samples import Sample


def sample(answer="red", *, frames=None, question="What colour?", truth="red"):
    if frames is None:
        frames = np.full((3, 16, 16, 3), 128, np.uint8)
    return Sample(frames, question, truth, answer, "test", "colour")


def pixels(png):
    """The picture as whole numbers, uint8[H, W, 3]."""
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(np.uint8)


def has(png, colour):
    return bool((pixels(png) == (np.array(to_rgb(colour)) * 255).round()).all(-1).any())


def test_the_answer_is_green_when_it_is_right_and_red_otherwise():
    right, wrong = sheet.draw([sample("red ")]), sheet.draw([sample("blue")])
    assert has(right, sheet._RIGHT) and not has(right, sheet._WRONG)
    assert has(wrong, sheet._WRONG) and not has(wrong, sheet._RIGHT)


def test_frames_are_shown_in_order_from_first_to_last():
    frames = np.zeros((100, 4, 48, 3), np.uint8)
    frames[:] = np.arange(100)[:, None, None, None]
    shown = sheet._strip(frames)[0, ::50, 0]  # frames 48 wide, with a gap of 2
    assert shown.tolist() == [0, 14, 28, 42, 57, 71, 85, 99]
    short = sheet._strip(frames[:2])
    assert short.shape == sheet._strip(frames).shape
    assert short[0, ::50, 0].tolist() == [0, 1] + [255] * 6


def test_the_sheet_shows_the_frames_of_every_sample():
    colours = [(250, 10 * i, 5) for i in range(7)]
    clips = [np.full((9, 16, 16, 3), colour, np.uint8) for colour in colours]
    png = sheet.draw([sample(frames=clip) for clip in clips])
    for colour in colours:
        # Each clip's frames make up a good part of the sheet, no matter in which column they are.
        assert (pixels(png) == colour).all(-1).mean() > 0.02


def test_any_text_can_be_shown():
    draw = sheet.draw([sample("costs $5 and $_x^", question="a\n\tb " * 80, truth="$\\frac{$")])
    assert pixels(draw).std() > 1
    assert sheet._wrap("word " * 500).count("\n") == sheet._MOST_LINES - 1
    assert sheet._wrap("word " * 500).endswith("…")
    assert sheet._wrap("") == ""


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
    ],
)
def test_a_sample_refuses_what_are_not_frames(frames):
    with pytest.raises(ValueError, match="expected uint8"):
        sample(frames=frames)
