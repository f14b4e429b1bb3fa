import pytest

from rvllm_jax.evaluation.judge.facts import FactJudge, facts, overlap
from rvllm_jax.evaluation.judge.verdicts import items


@pytest.mark.parametrize(
    "a, b",
    [
        ("A dog runs.", "dogs running"),
        ("The woman dances", "women dancing"),
        ("a boy stopped", "The boys stop."),
        ("Two children", "2 child"),
        ("a gray hat", "grey hats"),
        ("a man's shoe", "the men shoes"),
        ("He carries it", "carrying"),
        ("bridges", "a bridge"),
    ],
)
def test_one_fact_in_two_forms(a, b):
    found, other = facts(a), facts(b)
    assert found["things"] == other["things"] and found["colours"] == other["colours"]


@pytest.mark.parametrize("word", ["string", "dress", "bus", "tennis", "sing", "bed", "speed"])
def test_words_that_only_look_inflected_stay_as_they_are(word):
    assert facts(word)["things"] == {word}


def test_the_four_kinds():
    found = facts("Three women in blue dresses walk on the beach. In a hall a dog barks.")
    assert found["things"] == {"woman", "dress", "walk", "beach", "hall", "dog", "bark"}
    assert found["colours"] == {"blue"} and found["counts"] == {"3 woman"}
    assert found["relations"] == {"woman in dress", "walk on beach"}  # none across sentences


def test_a_number_of_nothing_is_a_fact_too():
    assert facts("Two.")["counts"] == {"2"} == facts("2")["counts"]


def test_function_words_are_no_facts():
    assert not any(facts("It is there, and he was not in it.").values())


def test_what_overlaps(answer):
    found = overlap("A red dog on a mat", "A black dog on a mat barks")
    assert found["supported"]["things"] == ["dog", "mat"]
    assert found["supported"]["relations"] == ["dog on mat"]
    assert found["unsupported"]["colours"] == ["red"] and found["missing"]["colours"] == ["black"]
    (item,) = items([answer(answer="A red dog on a mat", truth="A black dog on a mat barks")])
    verdict = FactJudge().judge(item, "own")
    assert verdict.overlap == 3 / 4 and verdict.correct is None and verdict.score is None
    assert verdict.more["recall"] == 3 / 5


def test_order_and_length_of_the_truth_do_not_matter(answer):
    truth = "Two men in red shirts stand on a bridge near a river with a dog."
    (own,) = items([answer(answer="Two men stand near a river.", truth=truth)])
    assert FactJudge().judge(own, "own").overlap == pytest.approx(
        4 / 5
    )  # "stand near river" is not said there
    (same,) = items([answer(answer=truth, truth=truth)])
    assert (
        FactJudge().judge(same, "own").overlap == 1 == FactJudge().judge(same, "own").more["recall"]
    )
    (none,) = items([answer(answer="It is.", truth=truth)])
    assert (
        FactJudge().judge(none, "own").overlap is None
        and FactJudge().judge(none, "own").more["recall"] == 0
    )
