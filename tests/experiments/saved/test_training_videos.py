import json

import pytest

from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.weights.safetensors import WeightsError


def test_a_run_notes_its_videos_and_those_of_what_it_starts_from(tmp_path):
    first, second, export = (tmp_path / name for name in ("first", "second", "export"))
    for folder in (first, second, export):
        folder.mkdir()
    assert training_videos.read(first) is None
    training_videos.record(first, ["b.mp4", "a.mp4", "b.mp4"], weights="")
    assert training_videos.read(first) == {"videos": ["a.mp4", "b.mp4"], "unknown": []}
    training_videos.write(export, training_videos.read(first))
    weights = f"{export}, {tmp_path / 'vicuna'}"
    training_videos.record(second, ["c.mp4"], weights=weights)
    both = {"videos": ["a.mp4", "b.mp4", "c.mp4"], "unknown": [str(tmp_path / "vicuna")]}
    assert training_videos.read(second) == both
    training_videos.record(second, ["d.mp4"], weights="")  # goes on with another one
    assert training_videos.read(second)["videos"] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert training_videos.read(second)["unknown"] == both["unknown"]


@pytest.mark.parametrize("content", ["{", '{"videos": ["a"]}', '{"videos": [1], "unknown": []}'])
def test_a_broken_file_is_refused(content, tmp_path):
    (tmp_path / training_videos.FILE).write_text(content)
    with pytest.raises(WeightsError, match="training_videos.json: cannot be read"):
        training_videos.read(tmp_path)


def test_a_name_that_is_no_utf_8_survives(tmp_path):
    training_videos.record(tmp_path, ["a\udcff.mp4"], weights="")
    assert training_videos.read(tmp_path)["videos"] == ["a\udcff.mp4"]
    assert json.loads((tmp_path / training_videos.FILE).read_bytes())
