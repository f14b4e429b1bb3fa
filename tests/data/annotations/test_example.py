"""Whether the videos that examples name are there."""

import pytest

from rvllm_jax.data.annotations.example import AnnotationError, check_videos
from rvllm_jax.types import Example, Turn


def test_missing_videos_are_named_and_counted(tmp_path):
    ids = [f"c{i:02d}" for i in range(12)]
    turns = (Turn("What?", "It."),)
    examples = [Example(i, f"{i}.mp4", turns, "It.") for i in ids]
    (tmp_path / "c05.mp4").touch()
    (tmp_path / "c06.mp4").mkdir()  # a folder is no video
    with pytest.raises(AnnotationError) as caught:
        check_videos(examples, tmp_path)
    message = str(caught.value)
    assert "of 11 examples" in message and "and 1 more" in message
    assert "'c00' names 'c00.mp4'" in message and "'c06'" in message and "c05" not in message
    for i in ids:
        if i != "c06":
            (tmp_path / f"{i}.mp4").touch()
    check_videos([c for c in examples if c.id != "c06"], tmp_path)
    with pytest.raises(AnnotationError, match="no such folder"):
        check_videos(examples, tmp_path / "absent")
