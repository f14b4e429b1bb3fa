"""The H.264 writer: the same bytes for the same frames, whole files or none."""

import numpy as np
import pytest

from rvllm_jax.data.video import container, encode


def test_same_frames_give_the_same_bytes(tmp_path, moving_bar):
    encode.write(tmp_path / "a.mp4", moving_bar(), fps=8)
    encode.write(tmp_path / "b.mp4", moving_bar(), fps=8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 35, 36, 3), np.uint8),
        np.zeros((4, 36, 36, 3), np.float32),
        np.zeros((36, 36, 3), np.uint8),
        np.zeros((0, 36, 36, 3), np.uint8),
    ],
)
def test_write_refuses_what_h264_cannot_hold(tmp_path, frames):
    with pytest.raises(ValueError, match=str(tmp_path)):
        encode.write(tmp_path / "a.mp4", frames, fps=8)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, clip, moving_bar):
    before = clip.read_bytes()
    with pytest.raises(container.VideoError, match="Free some space"):
        encode.write(tmp_path / "missing" / "a.mp4", moving_bar(), fps=8)
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(container.VideoError, match="taken.mp4"):
        encode.write(tmp_path / "taken.mp4", moving_bar(), fps=8)
    assert clip.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "taken.mp4"}
