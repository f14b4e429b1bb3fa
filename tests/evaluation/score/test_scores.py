"""Scores out of verdicts, against sums done by hand."""

import json
import random

import pytest

from rvllm_jax.evaluation.answers.questions import CRITERIA
from rvllm_jax.evaluation.judge.verdicts import Judged
from rvllm_jax.evaluation.score.scores import Scoring, scores, unjudged_note
from rvllm_jax.evaluation.score.text import score_lines

INFO = {"benchmark": "activitynet_qa", "split": "test"}
JUDGE = {"models": {"m": 1}, "model": "m", "parameters": None}


def judged(id, *, criterion="", control="", video="v", pair="", **changes):
    fields = dict(
        key=(pair or id, control, criterion), question_id=id, control=control, criterion=criterion,
        video=video, type="", asked=id.rstrip("'"), of=id, answered=True, correct=None, score=None,
        overlap=None, failed="", model="m", date="d", tokens={}, more={},
    )  # fmt: skip
    return Judged(**fields | changes)


def test_accuracy_and_score_over_all_questions():
    rows = [
        judged("a", correct=True, score=4.8, video="1", type="3"),
        judged("b", correct=True, score=3.9, video="1", type="7"),
        judged("c", correct=False, score=0.5, video="2", type="3"),
        judged("d", failed="unreadable", video="3", type="3"),
        judged("e", failed="not answered: no video", answered=False, video="4", type="7"),
    ]
    found = scores(rows, INFO)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["accuracy"]["value"] == 2 / 5 and found["accuracy"]["n"] == 5
    assert found["score"]["value"] == pytest.approx((4.8 + 3.9 + 0.5) / 5)
    assert found["accuracy"]["low"] < 2 / 5 < found["accuracy"]["high"]
    assert found["failed"] == {"unanswered": 1, "unjudged": 1}
    assert (found["n"], found["videos"], found["split"]) == (5, 4, "test")
    assert found["of_judged"]["accuracy"]["value"] == 2 / 3
    assert found["of_judged"]["score"]["value"] == pytest.approx(9.2 / 3)
    assert set(found["by_type"]) == {"yes/no", "number", "free"}
    assert found["by_type"]["yes/no"]["accuracy"]["value"] == 1 / 3
    assert found["by_type"]["number"]["score"]["value"] == pytest.approx(3.9 / 2)
    assert found["by_type"]["free"]["accuracy"] == found["accuracy"]
    published = scores(rows, INFO, Scoring(integer=True))
    assert published["score"]["value"] == pytest.approx((4 + 3 + 0) / 5)
    assert published["accuracy"] == found["accuracy"] and published["integer_scores"]
    judge = JUDGE | {"parameters": {"temperature": 0.0, "tries": 3}}
    told = [
        next(iter(score_lines(f | {"benchmark": "b", "judge": judge}))) for f in (found, published)
    ]
    assert "judged by m (temperature 0):" in told[0]
    assert "judged by m (temperature 0, scores cut to whole numbers):" in told[1]


def test_where_nothing_was_judged_there_is_no_score():
    missing = judged("e", failed="not answered: no video", answered=False, type="7")
    rows = [judged(id, failed="unreadable", video=id, type="3") for id in "ab"]
    found = scores([*rows, missing], INFO)
    assert found["accuracy"] == {"value": None, "low": None, "high": None, "n": 3}
    assert found["by_type"]["yes/no"]["accuracy"]["value"] is None
    assert found["by_type"]["number"]["accuracy"]["value"] == 0  # the model's own: no answer
    assert found["answered"] == 2 and "nothing was judged" in unjudged_note(found)
    lines = "\n".join(score_lines(found | {"benchmark": "b", "judge": JUDGE}))
    assert "nothing was judged" in lines and "accuracy none" in lines and "0.0 %\n" not in lines
    text = [judged(c, criterion=c, failed="unreadable", pair="p") for c in CRITERIA]
    found = scores(text, INFO | {"benchmark": "video_text_generation"})
    assert found["mean_of_criteria"] is None and found["criteria"]["CI"]["value"] is None
    facts = scores([judged("f", criterion="F", failed="unreadable")], INFO)["faithfulness"]
    assert facts["hallucinated"]["value"] is None
    # One verdict, and the question stays in the denominator.
    found = scores([*rows, judged("c", correct=True, video="c", type="3")], INFO)
    assert found["accuracy"]["value"] == 1 / 3
    assert unjudged_note(found).startswith("2 of 3 verdicts failed")
    lines = "\n".join(score_lines(found | {"benchmark": "b", "judge": JUDGE}))
    assert "accuracy 33.3 %" in lines and "of those judged: accuracy 100.0 %" in lines
    assert not unjudged_note(scores([judged("c", correct=True), missing], INFO))


@pytest.mark.parametrize(
    "videos, told",
    [
        (None, "trained on these videos: unknown"),
        ([], "none of these videos is a training video"),
        (["1"], "without 1 training videos, 1 of 2 questions are left"),
        (["1", "2"], "without 2 training videos, 0 of 2 questions are left"),
    ],
)
def test_the_lines_always_say_how_it_stands_with_training_videos(videos, told):
    rows = [judged("a", correct=True, video="1"), judged("b", correct=False, video="2")]
    found = scores(rows, INFO | {"overlap": {"videos": videos}}, Scoring(resamples=20))
    lines = list(score_lines(found | {"benchmark": "b", "judge": JUDGE}))
    assert any(told in line for line in lines), lines
    rest = [line for line in lines if line.startswith("  without 1 training videos: accuracy 0.0")]
    assert bool(rest) == (videos == ["1"])


def test_the_order_of_the_lines_changes_nothing():
    """Not even the last digit of a sum."""
    rows = [
        judged(f"q{n}", correct=n % 3 == 0, score=n * 7 % 50 / 10, video=str(n % 7))
        for n in range(400)
    ]
    expected = scores(rows, INFO)
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert scores(rows, INFO) == expected


def test_five_criteria_and_their_mean():
    values = {"CI": [1, 2], "DO": [3, 4], "CU": [5, 0], "TU": [2], "C": [4.5]}
    rows = [
        judged(f"{c}{n}" if c in "TUC" else f"g{n}", criterion=c, score=v, video=str(n),
               pair="p" if c == "C" else "")
        for c, scored in values.items() for n, v in enumerate(scored)
    ]  # fmt: skip
    found = scores(rows, INFO | {"benchmark": "video_text_generation"})
    means = {c: e["value"] for c, e in found["criteria"].items()}
    assert means == {"CI": 1.5, "DO": 3.5, "CU": 2.5, "TU": 2, "C": 4.5}
    assert found["mean_of_criteria"] == pytest.approx(14 / 5)
    assert "accuracy" not in found and found["n"] == 4
    without = scores([r for r in rows if r.criterion != "TU"], INFO)
    assert without["mean_of_criteria"] is None  # a mean of four is not the published one


def test_both_rules_of_exact():
    rows = [
        judged("a", correct=True, more={"official": True, "normalised": True}, video="1"),
        judged("b", correct=False, more={"official": False, "normalised": True}, video="2"),
        judged("c", failed="not answered", answered=False, video="2"),
        judged("d", correct=False, more={"official": False, "normalised": False}, video="2"),
    ]
    found = scores(rows, INFO)
    assert found["rules"]["official"]["value"] == 1 / 4
    assert found["rules"]["normalised"]["value"] == 2 / 4 and "score" not in found


def test_controls_stand_beside_the_same_questions():
    """All ask the same words, and half of them are asked again blind."""
    rows = [judged(f"q{n}", correct=n < 3, video=str(n), asked="same") for n in range(6)]
    rows += [judged(f"q{n}", control="blind", correct=n < 1, asked="same") for n in range(3)]
    found = scores(rows, INFO)
    assert found["accuracy"]["value"] == 0.5 and found["n"] == 6
    blind = found["controls"]["blind"]
    assert blind["n"] == 3 and blind["accuracy"]["value"] == pytest.approx(1 / 3)
    assert blind["own"]["accuracy"]["value"] == 1.0


def test_without_training_videos_and_where_they_are_unknown():
    rows = [judged(f"q{n}", correct=n < 2, video=f"v{n}") for n in range(4)]
    assert scores(rows, INFO)["without_training_videos"] is None
    for info in ({"training_videos": ["v0", "x"]}, {"overlap": {"videos": ["v0"]}}):
        found = scores(rows, INFO | info)["without_training_videos"]
        assert found["videos_left_out"] == 1 and found["n"] == 3
        assert found["accuracy"]["value"] == pytest.approx(1 / 3)
    none = scores(rows, INFO | {"training_videos": []})["without_training_videos"]
    assert none == {"videos_left_out": 0, "n": 4}


def test_faithfulness():
    overlaps = [1.0, 0.5, 0.49, None]
    rows = [judged(f"q{n}", criterion="F", overlap=o, video=str(n)) for n, o in enumerate(overlaps)]
    rows.append(judged("q4", criterion="F", failed="not answered", answered=False))
    found = scores(rows, INFO)["faithfulness"]
    assert found["overlap"]["value"] == pytest.approx(1.99 / 4)
    assert found["hallucinated"]["value"] == 2 / 4 and found["without_facts"] == 1


def test_tokens_add_up():
    rows = [judged("a", tokens={"prompt_tokens": 3}), judged("b", control="blind",
            tokens={"prompt_tokens": 4, "completion_tokens": 1})]  # fmt: skip
    assert scores(rows, INFO)["tokens"] == {"prompt_tokens": 7, "completion_tokens": 1}
