"""JSON lines in, JSON lines out: everything has an answer or a reason, once, wherever it stops."""

import dataclasses
import json
import os
import shutil

import pytest

from rvllm_jax.data.annotations.example import AnnotationError, checked_video
from rvllm_jax.data.text import tokenizer
from rvllm_jax.experiments import questions_file
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.questions_file import QuestionsError, Tally, answer_file, read
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.system.atomic import WriteError
from rvllm_jax.system.lock import LockError, locked
from tests.experiments.conftest import ASKED, CONFIG


def test_every_line_comes_back_with_its_answers(ask, answerer, talker):
    tally, lines = ask(ASKED)
    assert tally == Tally(answered=6)
    assert [line["video"] for line in lines] == ["a.mp4"] * 3 + ["c.mp4"]
    asked = [{k: v for k, v in line.items() if k not in ("answer", "answers")} for line in lines]
    assert asked == [ASKED[0], ASKED[2], ASKED[3], ASKED[1]]
    numbers = {0: [0], 1: [4], 2: [5], 3: [1, 2, 3]}
    for place, line in enumerate(lines):
        session = answerer.session(answerer.load_video(talker / "videos" / line["video"]), "v")
        questions = line.get("questions") or [line["question"]]
        said = []
        for question, number in zip(questions, numbers[place], strict=True):
            session.reset()
            options = dict(sampling=CONFIG.sampling, max_new=5, seed=11 + number)
            said.append(session.ask(question, **options))
        assert said == (line.get("answers") or [line["answer"]])


def test_a_stopped_work_goes_on_to_the_same_answers(ask, monkeypatch, tmp_path):
    _, whole = ask(ASKED)
    stopped = tmp_path / "stopped.jsonl"
    for kept in (1, 3):
        text = [json.dumps(line) + "\n" for line in whole]
        stopped.write_text("".join(text[:kept]) + text[kept][:25])  # killed in a line
        settings = "out.jsonl.settings.json"
        shutil.copy(tmp_path / settings, tmp_path / settings.replace("out", "stopped"))
        tally, lines = ask(ASKED, out="stopped.jsonl")
        assert sorted(map(json.dumps, lines)) == sorted(map(json.dumps, whole))
        assert tally.before == kept and tally.answered == 6
    assert ask(ASKED, out="stopped.jsonl")[0] == Tally(answered=6, before=6)


def test_what_fails_is_named_and_tried_again(ask, talker, tmp_path):
    shutil.copytree(talker / "videos", tmp_path / "videos")
    bad = [
        "{not json",
        "[1]",
        {"question": "what?"},
        {"video": "a.mp4"},
        {"video": "a.mp4", "question": "q", "questions": ["q"]},
        {"video": "a.mp4", "questions": []},
        {"video": "late.mp4", "questions": ["what?", "where?"]},
        {"video": "a.mp4", "question": "  "},
        {"video": "a.mp4", "question": "left " * 5000},
    ]
    tally, lines = ask([*bad, ASKED[0]], videos=tmp_path / "videos")
    assert tally == Tally(answered=1, failed=10)
    assert len(lines) == 10 and sum("error" in line for line in lines) == 9
    reasons = [line.get("error", "") for line in lines]
    for part in (
        *("not JSON", "got list", "'video' must name", "expected text", "got []"),
        *("late.mp4: is not there", "question is empty", "context is 4096"),
    ):
        assert sum(part in reason for reason in reasons) == 1, part
    assert sum("needs one of 'question' and 'questions'" in reason for reason in reasons) == 2
    (tmp_path / "videos" / "b.mp4").rename(tmp_path / "videos" / "late.mp4")
    tally, lines = ask([bad[6], ASKED[0]], videos=tmp_path / "videos")
    assert tally == Tally(answered=3, before=1) and not any("error" in line for line in lines)
    assert len(lines) == 2 and len(lines[1]["answers"]) == 2


def test_a_question_that_cannot_be_asked_leaves_its_line_s_others_alone(ask):
    whole = {"video": "c.mp4", "questions": ["which way?", "what is left?", "and up?"]}
    part = {"video": "c.mp4", "questions": ["which way?", " ", "and up?", None]}
    _, (good,) = ask([whole])
    tally, (line,) = ask([part], out="part.jsonl")
    assert tally == Tally(answered=2, failed=2)
    assert line["answers"] == [good["answers"][0], None, good["answers"][2], None]
    first, last = line["error"].split("; ")
    assert first.startswith("question 2: the question is empty")
    assert last == "question 4: expected text to ask, got None"
    again, lines = ask([part], out="part.jsonl")  # tried again, and not written twice
    assert again == tally and lines == [line]


def test_videos_stay_in_their_folder_as_those_of_annotations(ask, talker, tmp_path):
    folder, absolute = talker / "videos", str(talker / "videos" / "a.mp4")
    names = [absolute, "../videos/a.mp4", "./a.mp4"]
    tally, lines = ask([{"video": name, "question": "what?"} for name in names])
    assert tally == Tally(answered=1, failed=2)
    with pytest.raises(AnnotationError) as refused:
        checked_video(absolute)
    assert lines[0]["error"] == str(refused.value) and str(folder) in lines[0]["video"]
    assert "video '../videos/a.mp4' is not inside the folder of" in lines[1]["error"]
    assert ask([{"video": absolute, "question": "what?"}], out="paths.jsonl", videos="")[0].answered


def test_a_mark_before_a_question_is_left_out_and_one_in_it_is_refused(ask):
    asked = ["what moves?", "<video>\nwhat moves?", "what <video> moves?"]
    same = GenerationConfig(max_new=5)
    _, lines = ask([{"video": "a.mp4", "question": q} for q in asked], same)
    by = {line["question"]: line for line in lines}
    assert by[asked[0]]["answer"] == by[asked[1]]["answer"]
    assert "has <video> where no video can go" in by[asked[2]]["error"]


def test_no_line_comes_back_without_an_answer_or_a_reason(ask):
    nothing = {"video": "c.mp4", "questions": [None, 3]}
    absent = {"video": "absent.mp4", "questions": ["which way?", None]}
    tally, lines = ask([nothing, absent])
    assert tally == Tally(failed=4)
    told = {line["video"]: line["error"] for line in lines}
    assert told["c.mp4"].count("expected text to ask") == 2
    assert "is not there" in told["absent.mp4"]
    assert not any("answers" in line for line in lines)


def test_where_nothing_can_be_asked_the_model_is_not_read(ask, answerer, monkeypatch):
    monkeypatch.setattr(questions_file.Answerer, "engine", property(lambda self: 1 / 0))
    tally, _ = ask([{"video": "absent.mp4", "question": "what?"}, {"video": "a.mp4"}])
    assert tally == Tally(failed=2)


def test_other_answers_are_not_mixed_with_these(ask, tmp_path):
    ask(ASKED[:1])
    for config in (
        GenerationConfig(CONFIG.sampling, 5),
        GenerationConfig(CONFIG.sampling, 4, seed=11),
    ):
        with pytest.raises(QuestionsError, match="holds answers made otherwise"):
            ask(ASKED[:1], config)
    (tmp_path / "own.jsonl").write_text("mine\n")
    with pytest.raises(QuestionsError, match="was not written by this command"):
        ask(ASKED[:1], out="own.jsonl")
    assert (tmp_path / "own.jsonl").read_text() == "mine\n"
    with pytest.raises(QuestionsError, match="line 1 has the key 'answer'"):
        ask([{"video": "a.mp4", "question": "q", "answer": "truth"}])
    with pytest.raises(WriteError, match=r"absent/out\.jsonl: cannot be written .*No such file"):
        ask(ASKED[:1], out="absent/out.jsonl")


def test_answers_from_before_a_vote_and_stop_ids_go_on_in_lock_step(ask, answerer, tmp_path):
    _, lines = ask(ASKED[:1])
    settings = tmp_path / "out.jsonl.settings.json"
    older = json.loads(settings.read_text())
    assert older.pop("fusion") == "lock_step" and older.pop("stop_ids")
    settings.write_text(json.dumps(older))
    assert ask(ASKED[:1]) == (Tally(answered=1, before=1), lines)
    voting = Answerer(answerer.description, fusion="vote")
    with pytest.raises(QuestionsError, match="fusion: lock_step -> vote"):
        answer_file(voting, tmp_path / "in.jsonl", tmp_path / "out.jsonl", CONFIG)


def test_a_model_that_ends_its_answers_otherwise_does_not_go_on(ask, answerer, talker, tmp_path):
    """One in the same folder, whose generation_config.json lists another id now."""
    ask(ASKED[:1])
    before = (tmp_path / "out.jsonl").read_bytes()
    changed = shutil.copytree(talker / "tokenizer", tmp_path / "changed")
    ends = {"eos_token_id": [answerer.description.tokenizer.eos_id, 9]}
    (changed / "generation_config.json").write_text(json.dumps(ends))
    description = dataclasses.replace(answerer.description, tokenizer=tokenizer.load(changed))
    other = Answerer(description)
    with pytest.raises(QuestionsError, match=r"stop_ids: \[.*\] -> \[.*9\]"):
        answer_file(other, tmp_path / "in.jsonl", tmp_path / "out.jsonl", CONFIG)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_two_works_do_not_write_one_file(ask, tmp_path):
    ask(ASKED[:1])
    with locked(tmp_path / "out.jsonl", is_file=True):
        with pytest.raises(
            LockError, match=rf"out\.jsonl: is being written .*process {os.getpid()} "
        ):
            ask(ASKED[:2])


def test_a_file_without_questions_is_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n \n")
    with pytest.raises(QuestionsError, match="holds no questions"):
        read(tmp_path / "in.jsonl")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read(tmp_path / "absent.jsonl")
