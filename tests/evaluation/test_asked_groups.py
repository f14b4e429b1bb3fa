"""What is asked together, over a stand-in for a dataset: its clips, questions and views alone."""

from types import SimpleNamespace

import pytest

from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.evaluation.answers.questions import Question
from rvllm_jax.evaluation.asked_groups import chosen_controls, pending, plan, questions_together

CLIPS = [0, 0, 0, 1, 2, 2]  # of each question
QUESTIONS = [
    Question(f"q{n}", f"v{clip}", Turn(f"Is it {n % 3}?", f"a{n}"), pair="p" if n in (4, 5) else "")
    for n, clip in enumerate(CLIPS)
]
VIEWS = {0: ["x", "y"], 1: ["x"], 2: ["x", "y"]}
DATASET = SimpleNamespace(question_videos=CLIPS, views=VIEWS.__getitem__)


def test_a_plan_asks_every_question_once_of_each_control():
    controls = {"blind": {0: 0, 5: 2}, "swapped": {0: 1, 5: 0}}
    made = plan(DATASET, controls, videos=2, together=2)
    found = [(g.control, g.clip, g.questions) for batch in made.batches for g in batch]
    assert found == [
        ("", 0, (0, 1)), ("", 0, (2,)), ("", 1, (3,)), ("", 2, (4, 5)), ("blind", 0, (0,)),
        ("blind", 2, (5,)), ("swapped", 0, (5,)), ("swapped", 1, (0,)),
    ]  # fmt: skip
    assert made.clips == 2
    assert all(len(batch) <= 2 and len({g.control for g in batch}) == 1 for batch in made.batches)
    rows = made.batches[1][0].rows(made.clips)  # of the clip with one view
    assert [(row.video, tuple(row.questions)) for row in rows] == [(1, (3,)), (-1, ())]


def test_only_batches_with_an_open_question_are_asked_again():
    made = plan(DATASET, {"blind": {0: 0}}, videos=2, together=2)
    every = {(q.id, "") for q in QUESTIONS} | {("q0", "blind")}
    assert pending(made, QUESTIONS, set()) == made.batches
    assert pending(made, QUESTIONS, every) == []
    assert pending(made, QUESTIONS, every - {("q3", "")}) == [made.batches[1]]
    assert pending(made, QUESTIONS, every - {("q0", "blind")}) == [made.batches[2]]


@pytest.mark.parametrize("seed", range(6))
def test_controls_keep_pairs_together_and_show_other_videos(seed):
    controls = chosen_controls(DATASET, QUESTIONS, 3, seed)
    drawn = set(controls["blind"])
    assert len(drawn) in (3, 4) and (4 in drawn) == (5 in drawn)
    assert controls["shuffled"] == controls["blind"] == {n: CLIPS[n] for n in drawn}
    assert controls["swapped"].keys() == drawn
    assert all(clip != CLIPS[n] for n, clip in controls["swapped"].items())
    assert controls == chosen_controls(DATASET, QUESTIONS, 3, seed)


def test_controls_can_be_left_out_and_one_video_cannot_be_swapped():
    assert chosen_controls(DATASET, QUESTIONS, 0, 0) == {}
    alone = SimpleNamespace(question_videos=[0, 0])
    assert chosen_controls(alone, QUESTIONS[:2], 2, 0).keys() == {"blind", "shuffled"}


def test_how_many_are_together_is_between_one_and_the_most():
    assert questions_together([30] * 9, most=16) == 15  # two halves
    assert questions_together([1] * 50) == 1
    assert questions_together([3, 1], most=2) <= 2
