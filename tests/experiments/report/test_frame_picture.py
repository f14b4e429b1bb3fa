"""Every frame that the model sees is in the picture, once."""

import io

import matplotlib.image
import numpy as np
import pytest

from rvllm_jax.data.batches.loose_videos import VideoClips
from rvllm_jax.experiments.report.frame_picture import draw
from rvllm_jax.types import VideoInfo


def seen(clips: int, frames: int, real: int) -> VideoClips:
    """Frame f of clip c is of one colour, (9 f + 5, 40 c, 200), where it is real."""
    array = np.zeros((clips, frames, 8, 8, 3), np.uint8)
    number = np.arange(frames)
    array[..., 0] = (9 * number + 5)[None, :, None, None]
    array[..., 1] = (40 * np.arange(clips))[:, None, None, None]
    array[..., 2] = 200
    mask = np.tile(number < real, (clips, 1))
    times = np.where(mask, number / 10, np.nan)
    info = VideoInfo("h264", 8, 8, 10.0, frames, 1.0, 1)
    return VideoClips(array, mask, np.ones(clips, np.int32), times, info, "")


def colours(picture: bytes) -> set[tuple]:
    pixels = matplotlib.image.imread(io.BytesIO(picture))[..., :3]
    found, count = np.unique(
        np.round(pixels * 255).astype(int).reshape(-1, 3), axis=0, return_counts=True
    )
    return {tuple(c) for c, n in zip(found.tolist(), count, strict=True) if n > 500 and c[2] == 200}


@pytest.mark.parametrize("real", [1, 9, 23])
def test_one_clip_is_shown_whole_and_its_padding_not(real):
    shown = colours(draw(seen(1, 25, real), "a $ \n title"))
    assert shown == {(9 * f + 5, 0, 200) for f in range(real)}


def test_of_several_clips_each_has_its_line():
    shown = colours(draw(seen(3, 25, 20), "v"))
    assert {c[1] for c in shown} == {0, 40, 80}
    first = sorted(c[0] for c in shown if c[1] == 0)
    assert len(first) == 10 and first[0] == 5 and first[-1] == 9 * 19 + 5
