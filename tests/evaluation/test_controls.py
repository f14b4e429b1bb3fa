"""The pairing of questions with other videos, and what is read off the answers."""

from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.evaluation.asking import Asked
from rvllm_jax.evaluation.controls import only_seen, partners, recurring

# "Where?" and "Who?" recur, the latter with equal answers; clip 1 has two questions.
PAIRS = [("Where?", "sea"), ("Who?", "cat"), ("Where?", "wood"), ("Who?", "cat"), ("Where?", "sea")]
TURNS = [Turn(question, answer) for question, answer in PAIRS]
CLIPS = [0, 1, 1, 2, 3]


def asked(*answers: str) -> list[Asked]:
    return [Asked(i, turn, answers[i]) for i, turn in enumerate(TURNS)]


def test_recurring_questions_are_those_that_only_a_look_decides():
    assert recurring(asked(*"abcde")) == [0, 2, 4]


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
    plain, others = asked("sea", "cat", "wood", "cat", "wood"), partners(TURNS, CLIPS)
    controls = {"blind": asked("wood", *"...", "x")}
    found = {"count": 3, "plain": 2 / 3, "blind": 0.0}
    assert only_seen(plain, controls, []) == found
    controls["swapped"] = asked("wood", "dog", "wood", "dog", "wood")
    swapped = {"changed": 1 / 3, "follows": 2 / 3}
    assert only_seen(plain, controls, others) == found | {"swapped": swapped}


def test_without_recurring_questions_there_is_nothing_to_share():
    plain = asked("sea", "cat", *"...")[:2]
    assert only_seen(plain, {"blind": plain, "swapped": plain}, [1, 0]) == {"count": 0}
