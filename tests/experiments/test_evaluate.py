"""Evaluations of a small untrained model on real stored clips."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.evaluation.answers.answer_file import AnswerFile
from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.experiments.benchmark_run import EvaluationOptions
from rvllm_jax.experiments.evaluate import evaluate
from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.generation.engine import Engine
from rvllm_jax.system.lines import LinesError
from rvllm_jax.system.lock import LockError, locked

ROOT = Path(__file__).parents[2]
FEW = dict(controls=4, together=1)  # eight questions a batch, so that there are several batches


def lines(folder):
    """The answers, without what differs from one time to the next."""
    found = AnswerFile.read(folder)
    return {
        (a["question_id"], a["control"]): {k: v for k, v in a.items() if k != "seconds"}
        for a in found
    }


@pytest.fixture(scope="module")
def whole(run_folder, prepared, tmp_path_factory):
    """An evaluation from beginning to end."""
    out = tmp_path_factory.mktemp("whole")
    told = evaluate(["own"], str(prepared), str(run_folder), out, EvaluationOptions(**FEW))
    return out / "own", told


@pytest.mark.slow
def test_every_question_is_answered_once_and_lost_ones_stay_in_the_denominator(whole):
    folder, told = whole
    found = AnswerFile.read(folder)
    plain = [a for a in found if not a["control"]]
    assert len(found) == len(lines(folder))
    assert len(plain) == 11 == len({a["question_id"] for a in plain})
    assert len({a["answer"] for a in plain}) >= 4  # so that a wrong place would show
    (lost,) = [a for a in plain if a["failed"]]
    assert lost["question_id"] == "gone_0" and lost["answer"] == ""
    assert "11 questions answered, 1 of them failed" in "\n".join(told)
    assert "answers that are there are kept" in "\n".join(told)
    info = json.loads((folder / "info.json").read_text())
    assert info["questions"] == 11 and info["failed"] == 1 and info["split"] == "test"
    assert info["complete"] and info["training_videos"] is None
    assert "not known" in info["overlap"]["told"] and "not known" in "\n".join(told)
    one = next(a for a in plain if a["question_id"] == "a_1")
    assert (one["question"], one["truth"], one["type"]) == ("what is at 1?", "a 1", "t1")
    assert "what is at 1?" in one["prompt"] and "<video>" in one["prompt"]
    (clip,) = one["clips"]
    assert clip["count"] == 1 and clip["start_s"] > 0 and clip["crop"] == "y=2 x=2 size=32"
    predictions = json.loads((folder / "predictions.json").read_text())
    assert [p["id"] for p in predictions] == [a["question_id"] for a in _in_order(plain)]
    keys = {"id", "question", "answer", "pred"}
    assert all(p.keys() == keys for p in predictions)


def _in_order(plain):
    order = [f"{name}_{n}" for name in "abc" for n in range(5)]
    order += ["v_abcdefghijk_0", "v_abcdefghijk_1", "gone_0"]
    return sorted(plain, key=lambda a: order.index(a["question_id"]))


@pytest.mark.slow
def test_controls_are_asked_of_a_drawn_part(whole):
    folder, _ = whole
    by_control = {}
    for (id, control), answer in lines(folder).items():
        by_control.setdefault(control, {})[id] = answer["answer"]
    assert by_control.keys() == {"", "blind", "shuffled", "swapped"}
    drawn = by_control["blind"].keys()
    assert len(drawn) == 4
    assert drawn == by_control["shuffled"].keys() == by_control["swapped"].keys()
    for answer in AnswerFile.read(folder):
        named = {clip.get("video", answer["video"]) for clip in answer["clips"]}
        assert (answer["video"] in named) is (answer["control"] != "swapped" and bool(named))
    plain = {id: by_control[""][id] for id in drawn}
    assert any(by_control[control] != plain for control in ("blind", "swapped"))
    same = {}
    for id, answer in by_control["blind"].items():  # nothing but the question is seen
        assert same.setdefault(id.rpartition("_")[2], answer) == answer


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "half a line"])
def test_what_was_interrupted_ends_as_if_it_had_not_been(
    how, whole, run_folder, prepared, tmp_path, monkeypatch
):
    folder = tmp_path / "own"
    if how == "killed":
        _kill_after(13, run_folder, prepared, tmp_path)
        held = lines(folder)
        whole_lines = lines(whole[0])
        assert len(held) == 13 and all(whole_lines[key] == a for key, a in held.items())
    else:
        shutil.copytree(whole[0], folder)
        content = (folder / "answers.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "answers.jsonl").write_bytes(b"".join(content[:5]) + content[5][:17])
    evaluate(["own"], str(prepared), str(run_folder), tmp_path, EvaluationOptions(**FEW))
    assert lines(folder) == lines(whole[0])
    assert len(AnswerFile.read(folder)) == len(AnswerFile.read(whole[0]))
    again = (folder / "answers.jsonl").read_bytes()
    monkeypatch.setattr(Engine, "tokens", None)  # nothing is asked again
    evaluate(["own"], str(prepared), str(run_folder), tmp_path, EvaluationOptions(**FEW))
    assert (folder / "answers.jsonl").read_bytes() == again


def _kill_after(answers, run_folder, prepared, out):
    """On one device, killed once so many answers are on disk."""
    program = f"""
import os, signal, jax  # on one device
jax.config.update("jax_platforms", "cpu")
from rvllm_jax.evaluation.answers.answer_file import AnswerFile
from rvllm_jax.experiments.benchmark_run import EvaluationOptions
from rvllm_jax.experiments.evaluate import evaluate
append, count = AnswerFile.append, 0
def appended(self, record):
    global count
    append(self, record)
    count += 1
    if count == {answers}:
        os.kill(os.getpid(), signal.SIGKILL)
AnswerFile.append = appended
options = EvaluationOptions(**{FEW!r})
evaluate(["own"], {str(prepared)!r}, {str(run_folder)!r}, {str(out)!r}, options)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_answers_of_another_model_or_other_questions_are_not_continued(
    whole, joint, run_folder, prepared, tmp_path
):
    from tests.experiments.conftest import write_run

    folder = shutil.copytree(whole[0], tmp_path / "own")
    before = (folder / "answers.jsonl").read_bytes()
    other = write_run(joint, tmp_path / "other", seed=1)
    for model, options, named in (
        (other, EvaluationOptions(**FEW), "checkpoint"),
        (run_folder, EvaluationOptions(**FEW | dict(max_new=3)), "max_new"),
        (run_folder, EvaluationOptions(**FEW | dict(controls=5)), "controls"),
    ):
        with pytest.raises(EvaluationError, match=f"{named}: .* there, .* now"):
            evaluate(["own"], str(prepared), str(model), tmp_path, options)
    export = tmp_path / "export"  # the same arrays, shown fewer frames of a video
    convert([str(run_folder)], str(export))
    description = json.loads((export / "model.json").read_text())
    description["recipe"]["data"]["frames"] -= 1
    (export / "model.json").write_text(json.dumps(description))
    with pytest.raises(EvaluationError, match="frames: .* there, .* now"):
        evaluate(["own"], str(prepared), str(export), tmp_path, EvaluationOptions(**FEW))
    data = shutil.copytree(prepared, tmp_path / "data")
    text = (data / "own" / "test.json").read_text()
    (data / "own" / "test.json").write_text(text.replace("what is at 0?", "where is 0?"))
    with pytest.raises(EvaluationError, match="questions: .* there"):
        evaluate(["own"], str(data), str(run_folder), tmp_path, EvaluationOptions(**FEW))
    assert (folder / "answers.jsonl").read_bytes() == before


@pytest.mark.slow
def test_an_export_continues_what_its_run_began(whole, run_folder, prepared, tmp_path):
    """It is the same model: what counts is the values of its arrays. It brings its videos along."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    training_videos.record(run, ["elsewhere/a.mp4", "other.mp4"], weights="")
    convert([str(run)], str(tmp_path / "export"))
    shutil.copytree(whole[0], tmp_path / "own")
    told = evaluate(
        ["own"], str(prepared), str(tmp_path / "export"), tmp_path, EvaluationOptions(**FEW)
    )
    assert "11 questions answered" in "\n".join(told)
    assert "1 of 5 videos, with 5 of 11 questions, are among the 2 training videos" in told[-1]
    info = json.loads((tmp_path / "own" / "info.json").read_text())
    assert info["overlap"]["videos"] == ["a.mp4"]
    assert info["training_videos"] == ["elsewhere/a.mp4", "other.mp4"]


@pytest.mark.slow
def test_broken_answer_files_are_refused(whole, run_folder, prepared, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "own")
    path, content = folder / "answers.jsonl", (whole[0] / "answers.jsonl").read_bytes()
    first = content.splitlines(keepends=True)[0]

    def refused(error, match):
        with pytest.raises(error, match=match):
            evaluate(["own"], str(prepared), str(run_folder), tmp_path, EvaluationOptions(**FEW))

    path.write_bytes(content + first)
    refused(EvaluationError, "a second time")
    path.write_bytes(content.replace(b'"split": "test"', b'"split": "validation"', 1))
    refused(EvaluationError, "of split 'validation', which is no question of own test")
    path.write_bytes(content.replace(b'"question_id": "a_1"', b'"question_id": "z"', 1))
    refused(EvaluationError, "answers 'z'")
    path.write_bytes(b"{nothing}\n" + content)
    refused(LinesError, "line 1: not a line of JSON")
    path.write_bytes(content)
    (folder / "info.json").unlink()
    refused(EvaluationError, "info.json, which says what answered answers.jsonl, is not there")


def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(
    run_folder, prepared, tmp_path
):
    def refused(match, names=("own",), data=prepared, **options):
        with pytest.raises(EvaluationError, match=match):
            evaluate(
                list(names),
                str(data),
                str(run_folder),
                tmp_path / "out",
                EvaluationOptions(**options),
            )
        assert not (tmp_path / "out").exists()

    with locked(tmp_path / "out" / "own"), pytest.raises(LockError, match="own: is being written"):
        evaluate(["own"], str(prepared), str(run_folder), tmp_path / "out", EvaluationOptions())
    refused("msvd is no benchmark known here", names=["own", "msvd"])
    refused("names one twice", names=["own", "own"])
    refused("prepare msvd_qa with|Prepare msvd_qa with", names=["msvd_qa"])
    refused("--split=validation is not one", split="validation")
    refused("expected one of 1x1", clips="3x3")
    refused("no number below 0", max_new=-1)
    refused(r"lower --max_new to \d+ or less", max_new=10_000)
    shutil.copytree(prepared / "own", tmp_path / "data" / "msvd_qa")
    refused("no known benchmark, not of msvd_qa", names=["msvd_qa"], data=tmp_path / "data")
    (tmp_path / "data" / "msvd_qa" / "test.unusable.json").unlink()
    refused("1 videos are missing", data=tmp_path / "data" / "msvd_qa")
    info = json.loads((prepared / "own" / "test.info.json").read_text())
    info["partial"] = ["3 of 6,415 questions"]
    path = tmp_path / "data" / "msvd_qa" / "test.info.json"
    path.write_text(json.dumps(info))
    refused("3 of 6,415 questions.*--allow_partial", data=tmp_path / "data" / "msvd_qa")


@pytest.mark.slow
def test_answers_do_not_depend_on_how_many_questions_are_behind_a_prefix(
    whole, run_folder, prepared, tmp_path
):
    told = evaluate(
        ["own"], str(prepared), str(run_folder), tmp_path, EvaluationOptions(controls=4)
    )
    assert told == [line.replace(str(whole[0]), str(tmp_path / "own")) for line in whole[1]]
    assert lines(tmp_path / "own") == lines(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["lock_step", pytest.param("vote", marks=pytest.mark.slow)])
def test_several_clips_give_one_answer(fusion, run_folder, prepared, tmp_path):
    options = EvaluationOptions(controls=0, clips="5x5", fusion=fusion)
    evaluate(["own"], str(prepared), str(run_folder), tmp_path, options)
    found = {key: a for key, a in lines(tmp_path / "own").items() if not a["failed"]}
    assert len(found) == 10
    for answer in found.values():
        assert sum(clip["count"] for clip in answer["clips"]) == 25
        assert len({clip["start_s"] for clip in answer["clips"]}) == 5
    assert np.unique([len(a["clips"]) for a in found.values()]).tolist() == [25]
