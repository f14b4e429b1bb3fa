import json

import pytest

from rvllm_jax.evaluation.answers.answer_file import (
    AnswersError,
    check_answers,
    read_answers,
    read_info,
)
from rvllm_jax.evaluation.judge.verdicts import items


def checked(place):
    return check_answers(place / "answers.jsonl")


def test_what_a_file_holds(folder):
    rows = [dict(question_id="a"), dict(question_id="b"), dict(question_id="a", control="blind")]
    place = folder(rows)
    assert checked(place) == {"": 2, "blind": 1}
    found = list(read_answers(place / "answers.jsonl"))
    assert [a.place for a in found] == [("a", ""), ("b", ""), ("a", "blind")]


@pytest.mark.parametrize(
    "rows, told",
    [
        ([], "holds no answer"),
        ([dict(question_id="a"), dict(question_id="a")], "1 question ids come twice: a;"),
        ([dict(control="dark")], "control 'dark' is none of"),
        ([dict(answer=None)], "answer is None, expected a text"),
        ([dict(criteria=["XX"])], "expected a list of some of CI"),
        ([dict(criteria="CI")], "expected a list of some of CI"),
        ([dict(criteria=["C"])], "has criterion C and no pair"),
        ([dict(criteria=["C"], pair="p")], r"another number: p \(1\)"),
        (
            [dict(question_id=x, criteria=["C"], pair="p", truth=x) for x in "ab"],
            "two questions of p have different truths",
        ),
    ],
)
def test_what_is_refused(folder, rows, told):
    with pytest.raises(AnswersError, match=told):
        checked(folder([dict(question_id="q") | row for row in rows]))


def test_an_id_without_an_answer_is_told(folder):
    place = folder([dict(question_id="a")])
    (place / "answers.jsonl").write_text('{"question_id": "a", "video": "v"}\n')
    with pytest.raises(AnswersError, match="line 1: has no question, truth, .*answer"):
        checked(place)


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "cannot be read"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"benchmark": "x"}', "has no split"),
        ('{"benchmark": "x", "split": ""}', "has no split"),
    ],
)
def test_no_score_without_benchmark_and_split(tmp_path, content, told):
    if content is not None:
        (tmp_path / "info.json").write_text(content)
    with pytest.raises(AnswersError, match=told):
        read_info(tmp_path)


def test_items(answer):
    generic = answer("g", criteria=["CI", "DO", "CU"])
    first = answer("c1", criteria=["C"], pair="p", question="One?", answer="1")
    second = answer("c2", criteria=["C"], pair="p", question="Two?", answer="2", failed="no video")
    blind = answer("q", control="blind")
    found = list(items([first, generic, answer("q"), blind, second]))
    assert [i.key for i in found] == [
        ("g", "", "CI"), ("g", "", "DO"), ("g", "", "CU"), ("q", "", ""), ("q", "blind", ""),
        ("p", "", "C"),
    ]  # fmt: skip
    assert found[-1].questions == ("One?", "Two?") and found[-1].answers == ("1", "2")
    assert found[-1].failed == "no video"
    every = [i.criterion for i in items([generic, first, second], faithfulness=True)]
    assert sorted(every) == ["C", "CI", "CU", "DO", "F", "F", "F"]


def test_an_empty_answer_is_not_put_before_a_judge(answer):
    (item,) = items([answer(answer=" ")])
    assert item.failed == "the answer is empty"


def test_what_an_item_is_known_by(answer):
    def item(**changes):
        return next(items([answer(**changes)]))

    one = item()
    assert item(video="x").of == one.of  # the same video in a file of another name
    for changes in (dict(answer="x"), dict(failed="x"), dict(type="x")):
        assert item(**changes).asked == one.asked and item(**changes).of != one.of
    for changes in (dict(question="x"), dict(truth="x")):
        assert item(**changes).asked != one.asked and item(**changes).of != one.of
    assert item(seconds=9.0).of == one.of == json.loads(json.dumps(one.of))
