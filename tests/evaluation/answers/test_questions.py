import pytest

from rvllm_jax.evaluation.answers.questions import (
    EvaluationError,
    Question,
    fingerprint,
    questions_of,
)
from rvllm_jax.types import Example, Turn


def example(id, *turns, video="v"):
    return Example(id, video, tuple(turns), "c")


def test_every_turn_has_an_id_and_lost_ones_a_reason():
    found = questions_of(
        "own",
        [example("a", Turn("1?", "x")), example("b", Turn("2?", "x"), Turn("3?", "x"))],
        [example("c", Turn("4?", "x"), video="w"), example("d", Turn("5?", "x"))],
        {"w": "does not decode: cut"},
    )
    assert [(q.id, q.failed) for q in found] == [
        ("a", ""), ("b/1", ""), ("b/2", ""), ("c", "does not decode: cut"),
        ("d", "its video is not there"),
    ]  # fmt: skip


def test_text_generation_says_by_what_it_is_judged():
    turn = Turn("q?", "x", "consistency")
    kinds = [example(kind, Turn("?", "x", kind)) for kind in ("generic", "temporal")]
    pair = example("consistency:5", turn, Turn("r?", "x", "consistency"))
    found = questions_of("video_text_generation", [*kinds, pair])
    assert [q.criteria for q in found] == [("CI", "DO", "CU"), ("TU",), ("C",), ("C",)]
    assert [q.pair for q in found] == ["", "", "consistency:5", "consistency:5"]
    with pytest.raises(EvaluationError, match="'e' has the type 'colour'"):
        questions_of("video_text_generation", [example("e", Turn("?", "x", "colour"))])


def test_an_id_that_comes_twice_is_refused():
    turns = Turn("1?", "x"), Turn("2?", "x")
    with pytest.raises(EvaluationError, match="1 question ids come twice: a/1"):
        questions_of("own", [example("a", *turns), example("a/1", turns[0])])


def test_the_fingerprint_changes_with_questions_truths_order_and_files():
    found = questions_of("own", [example("a", Turn("1?", "x"), Turn("2?", "y"))])
    other = questions_of("own", [example("a", Turn("1?", "x"), Turn("2?", "z"))])
    names = {
        fingerprint(found, {"v": 1}), fingerprint(found, {"v": 2}), fingerprint(other, {"v": 1}),
        fingerprint(found[::-1], {"v": 1}),
    }  # fmt: skip
    assert len(names) == 4 and fingerprint(found, {"v": 1}) in names


def test_the_fingerprint_is_that_of_answers_which_are_there():
    """Neither what it is made of nor the names in it may change: they would be mixed no more."""
    first = Question("a/1", "a.mp4", Turn("What \udc80?", "red \u00fc", "color"))
    second = Question("b", "b.mp4", Turn("How?", "so"), ("C",), "b", "why")
    assert fingerprint([first, second], {"a.mp4": 7}) == "54ff907d1f0e1715"
