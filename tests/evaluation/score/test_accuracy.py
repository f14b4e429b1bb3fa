import doctest

import pytest

from rvllm_jax.evaluation import controls
from rvllm_jax.evaluation.answers import exact_match
from rvllm_jax.evaluation.score import accuracy as scores
from rvllm_jax.evaluation.score.accuracy import accuracy_by_type


def test_the_examples_in_the_documentation_hold():
    for module in (scores, exact_match, controls):
        tried = doctest.testmod(module)
        assert tried.attempted and not tried.failed


def test_every_question_counts_in_the_denominator():
    kinds = ["colour", "form", "colour", "form", "form"]
    predictions = ["red", None, "blue", "", "disc"]
    truths = ["red", "disc", "red", "disc", "disc"]
    accuracy, counts = accuracy_by_type(kinds, predictions, truths)
    assert accuracy == {"all": 2 / 5, "colour": 1 / 2, "form": 1 / 3}
    assert counts == {"all": 5, "colour": 2, "form": 3}


def test_none_is_not_an_answer():
    assert accuracy_by_type([""], [None], ["None"])[0] == {"all": 0.0}


def test_questions_without_a_type_count_in_the_total_only():
    accuracy, counts = accuracy_by_type(["", "", "form"], ["a", "b", "c"], ["a", "x", "c"])
    assert accuracy == {"all": 2 / 3, "form": 1.0}
    assert counts == {"all": 3, "form": 1}


def test_types_come_after_the_total_in_alphabetical_order():
    kinds = ["order", "form", "colour", "number", "existence", "direction"]
    accuracy, counts = accuracy_by_type(kinds, [""] * 6, ["a"] * 6)
    assert list(accuracy) == list(counts) == ["all", *sorted(kinds)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([], [], []), "no questions to score"),
        ((["", ""], ["a"], ["a"]), "got 2 types, 1 predictions and 1 references"),
        (([""], ["a", "b"], ["a"]), "got 1 types, 2 predictions"),
        ((["all"], ["a"], ["a"]), "the name of the total"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        accuracy_by_type(*arguments)
