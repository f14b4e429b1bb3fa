"""Whose answers a file of answers holds: of which model, and about which files."""

import dataclasses
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


def replaced(answerer, cache_dtype=None, **data):
    """The same model, shown its videos otherwise."""
    description = answerer.description
    recipe = description.recipe
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **data))
    description = dataclasses.replace(description, recipe=recipe)
    return Answerer(description, cache_dtype=cache_dtype)


def test_answers_of_videos_that_were_shown_otherwise_are_not_kept(ask, answerer, talker, tmp_path):
    ask(ASKED)
    frames = answerer.description.recipe.data.frames
    with pytest.raises(QuestionsError, match=f"frames: {frames} -> {frames + 1}"):
        again(replaced(answerer, frames=frames + 1), tmp_path, talker / "videos")
    with pytest.raises(QuestionsError, match="encoding: "):
        again(replaced(answerer, encoding="jpeg"), tmp_path, talker / "videos")
    with pytest.raises(QuestionsError, match="cache_dtype:  -> bfloat16"):
        again(replaced(answerer, cache_dtype="bfloat16"), tmp_path, talker / "videos")


def test_a_line_without_an_answer_is_answered_again(ask, answerer, talker, tmp_path):
    _, rows = ask(ASKED)
    out = tmp_path / "out.jsonl"
    for wrong in ({}, {"answer": None}, {"answers": []}, {"answers": ["a", None, "b"]}):
        cut = [{k: v for k, v in row.items() if k not in ("answer", "answers")} for row in rows]
        out.write_text("".join(json.dumps(row | wrong) + "\n" for row in cut))
        assert again(answerer, tmp_path, talker / "videos") == Tally(answered=6), wrong
    key = sorted(json.dumps(row) for row in rows)
    assert sorted(json.dumps(json.loads(row)) for row in out.read_text().splitlines()) == key


@pytest.mark.parametrize(
    "broken", ["", "{", "{}", '{"videos": [1]}', {"videos": [1]}, {"videos": None}]
)
def test_settings_that_are_broken_are_named(broken, ask, answerer, talker, tmp_path):
    ask(ASKED)
    path = tmp_path / "out.jsonl.settings.json"
    if isinstance(broken, dict):
        broken = json.dumps(json.loads(path.read_text()) | broken)
    path.write_text(broken)
    with pytest.raises(QuestionsError, match="out.jsonl.settings.json: .*restore the file"):
        again(answerer, tmp_path, talker / "videos")
    assert path.read_text() == broken
