"""The pairing of questions with other videos, and what is read off the answers."""

import pytest

from rvllm_jax.evaluation.answers.questions import Question
from rvllm_jax.evaluation.controls import drawn, only_seen, partners, recurring
from rvllm_jax.types import Turn

# "Where?" and "Who?" recur, the latter with equal answers; clip 1 has two questions.
PAIRS = [("Where?", "sea"), ("Who?", "cat"), ("Where?", "wood"), ("Who?", "cat"), ("Where?", "sea")]
TURNS = [Turn(question, answer) for question, answer in PAIRS]
CLIPS = [0, 1, 1, 2, 3]


def test_recurring_questions_are_those_that_only_a_look_decides():
    assert recurring(TURNS) == [0, 2, 4]


def test_videos_are_swapped_among_the_clips_of_a_question():
    """Those of another answer: 0 passes over the alike 4. Others take the next other clip."""
    assert partners(TURNS, CLIPS) == [2, 3, 4, 4, 2]


def test_a_partner_is_of_another_clip():
    turns = [Turn("Where?", "sea"), Turn("Where?", "shore"), Turn("Why?", "x"), TURNS[2]]
    assert partners(turns, [0, 0, 0, 1]) == [3, 3, 3, 0]
    assert partners(turns[:3], [0, 0, 1]) == [2, 2, 0]
    assert partners(turns, [0] * 4) == []


def test_answers_that_hang_on_the_video_are_told_from_others():
    """About the videos shown "wood", "sea" and "wood" are right; only the first answer changes."""
    plain, others = ["sea", "cat", "wood", "cat", "wood"], partners(TURNS, CLIPS)
    controls = {"blind": ["wood", *"...", "x"]}
    found = {"count": 3, "plain": 2 / 3, "blind": 0.0}
    assert only_seen(TURNS, plain, controls, []) == found
    controls["swapped"] = ["wood", "dog", "wood", "dog", "wood"]
    swapped = {"changed": 1 / 3, "follows": 2 / 3}
    assert only_seen(TURNS, plain, controls, others) == found | {"swapped": swapped}


def test_without_recurring_questions_there_is_nothing_to_share():
    plain = ["sea", "cat"]
    assert only_seen(TURNS[:2], plain, {"blind": plain, "swapped": plain}, [1, 0]) == {"count": 0}


OF_CLIPS = [0, 0, 0, 1, 2, 2]  # the clip of each question that controls are drawn from
QUESTIONS = [
    Question(f"q{n}", f"v{clip}", Turn(f"Is it {n % 3}?", f"a{n}"), pair="p" if n in (4, 5) else "")
    for n, clip in enumerate(OF_CLIPS)
]


@pytest.mark.parametrize("seed", range(6))
def test_controls_keep_pairs_together_and_show_other_videos(seed):
    controls = drawn(QUESTIONS, OF_CLIPS, 3, seed)
    chosen = set(controls["blind"])
    assert len(chosen) in (3, 4) and (4 in chosen) == (5 in chosen)
    assert controls["shuffled"] == controls["blind"] == {n: OF_CLIPS[n] for n in chosen}
    assert controls["swapped"].keys() == chosen
    assert all(clip != OF_CLIPS[n] for n, clip in controls["swapped"].items())
    assert controls == drawn(QUESTIONS, OF_CLIPS, 3, seed)


def test_controls_can_be_left_out_and_one_video_cannot_be_swapped():
    assert drawn(QUESTIONS, OF_CLIPS, 0, 0) == {}
    assert drawn(QUESTIONS[:2], [0, 0], 2, 0).keys() == {"blind", "shuffled"}
