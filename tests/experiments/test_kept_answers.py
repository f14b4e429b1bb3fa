"""Whose answers a file of answers holds: of which model, and about which files."""

import json
import os
import shutil

import pytest

from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.kept_answers import QuestionsError
from rvllm_jax.experiments.questions_file import Tally, answer_file
from rvllm_jax.experiments.saved.open import describe_model, open_model
from rvllm_jax.training.checkpoint import Checkpoints
from tests.experiments.conftest import ASKED, CONFIG

RECORDED = ("fingerprint", "videos")  # keys of settings that earlier versions did not write


def again(answerer, tmp_path, videos, say=lambda line: None):
    """The same command, `answerer` being what lies under the path of the model now."""
    where = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    return answer_file(answerer, *where, CONFIG, videos=videos, batch=2, say=say)


def trained_again(run, folder):
    """A run of the same step whose parameters are others."""
    shutil.copytree(run, folder)
    model = open_model(run)
    params = {path: x * 1.5 for path, x in model.params.items()}
    for path in (folder / "checkpoints").iterdir():
        shutil.rmtree(path)
    checkpoints = Checkpoints(folder)
    arrays = {"params": params, "stats": model.stats}
    checkpoints.save(model.step, arrays, {"position": {}})
    checkpoints.close()
    return folder


def test_answers_of_a_model_that_was_trained_again_under_its_path_are_not_kept(
    ask, talker, tmp_path
):
    ask(ASKED)
    before = (tmp_path / "out.jsonl").read_bytes()
    shutil.move(trained_again(talker, tmp_path / "new"), tmp_path / "model")
    settings = tmp_path / "out.jsonl.settings.json"
    path = str(Answerer(describe_model(tmp_path / "model")).description.identity)
    content = json.loads(settings.read_text()) | {"model": path}  # as if they had been its
    settings.write_text(json.dumps(content))
    other = Answerer(describe_model(tmp_path / "model"))
    with pytest.raises(QuestionsError, match="another model: [0-9a-f]{16} there, .* now"):
        again(other, tmp_path, talker / "videos")
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert json.loads(settings.read_text()) == content


def test_answers_of_a_model_and_videos_that_were_moved_are_kept(ask, talker, tmp_path):
    ask(ASKED)
    before = (tmp_path / "out.jsonl").read_bytes()
    moved = shutil.copytree(talker, tmp_path / "moved")
    tally = again(Answerer(describe_model(moved)), tmp_path, moved / "videos")
    assert tally == Tally(answered=6, before=6)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_answers_about_a_video_that_was_replaced_are_not_kept(ask, answerer, talker, tmp_path):
    videos = shutil.copytree(talker / "videos", tmp_path / "videos")
    ask(ASKED, videos=videos)
    before = (tmp_path / "out.jsonl").read_bytes()
    status = (videos / "a.mp4").stat()
    shutil.copy(videos / "b.mp4", videos / "a.mp4")
    os.utime(videos / "a.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(QuestionsError, match="about other files than these 1: a.mp4"):
        again(answerer, tmp_path, videos)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (videos / "a.mp4").unlink()  # what is not there is not another
    assert again(answerer, tmp_path, videos) == Tally(answered=6, before=6)


def test_answers_of_an_earlier_version_are_kept_and_it_is_said_what_is_not_known(
    ask, answerer, talker, tmp_path
):
    ask(ASKED)
    settings = tmp_path / "out.jsonl.settings.json"
    now = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: v for k, v in now.items() if k not in RECORDED}))
    lines = []
    again(answerer, tmp_path, talker / "videos", lines.append)
    assert "an earlier version wrote it" in "\n".join(lines)
    assert json.loads(settings.read_text()) == now
    lines.clear()
    again(answerer, tmp_path, talker / "videos", lines.append)
    assert "an earlier version" not in "\n".join(lines)
