import json
import random
from pathlib import Path

import pytest

from rvllm_jax.evaluation.answers.exact_match import (
    exact,
    normalise,
    official,
    same,
    type_name,
)

ANNOTATED = Path(__file__).parents[4] / "shared/data/annotations/activitynet_qa/test_a.json"


@pytest.mark.parametrize(
    "answer, truth, type, verbatim, normalised",
    [
        ("yes", "yes", "yes/no", True, True),
        ("Yes", "yes", "yes/no", False, True),
        ("Yes, he is.", "yes", "yes/no", False, True),
        ("no, yes", "yes", "yes/no", False, False),
        ("yesterday", "yes", "yes/no", False, False),
        ("yes, it is", "yes", "", False, False),
        ("two", "2", "number", False, True),
        ("2.", "2", "number", False, True),
        ("two", "2", "", False, False),
        ("12", "2", "number", False, False),
        ("3.5", "35", "number", False, False),
        ("Gray", "grey", "color", False, True),
        ("gray", "grey", "object", False, False),
        ("the couch.", "couch", "", False, True),
        ("a", "a", "", True, True),
        ("the", "the", "", True, True),
        ("man's hat", "mans hat", "", False, False),
        ("t-shirt", "t-shirt", "object", True, True),
        ("left, right", "left right", "", False, True),
        (" couch", "couch", "", False, True),
        ("", "couch", "", False, False),
        ("...", "!", "", False, False),
    ],
)
def test_two_rules(answer, truth, type, verbatim, normalised):
    assert same(answer, truth, type) == {"official": verbatim, "normalised": normalised}


def test_names_of_types():
    assert type_name("activitynet_qa", "0") == "motion"
    assert type_name("activitynet_qa", "8") == "other"
    assert type_name("tgif_frameqa", "2") == "color"
    assert type_name("msrvtt_qa", "2") == "2" and type_name("own", "colour") == "colour"
    assert type_name("activitynet_qa", "9") == "9"


@pytest.fixture
def annotated():
    if not ANNOTATED.is_file():
        pytest.skip(f"{ANNOTATED} is not here")
    return json.loads(ANNOTATED.read_text())


def restated(predictions, annotated):
    """The rule once more, as its text says it: right ones among predictions, over questions."""
    questions, right = {}, {}
    for row in annotated:
        questions.setdefault(row["type"], []).append(row["question_id"])
    for row in predictions:
        (about,) = [a for a in annotated if a["question_id"] == row["question_id"]]
        right[about["type"]] = right.get(about["type"], 0) + int(row["answer"] == about["answer"])
    shares = {str(type): right.get(type, 0) / len(ids) for type, ids in questions.items()}
    return shares | {"all": sum(right.values()) / len(annotated)}


@pytest.mark.parametrize("seed", range(3))
def test_the_official_rule_on_real_annotations(annotated, seed):
    """Right, wrong, differently written, missing and duplicated predictions."""
    rng = random.Random(seed)
    truths = {row["question_id"]: (str(row["type"]), row["answer"]) for row in annotated}
    predictions = []
    for row in annotated:
        id, right = row["question_id"], row["answer"]
        said = rng.choice([[right], [right], [right.upper()], ["none"], [], [right, right],
                           ["none", right], [f"{right}."]])  # fmt: skip
        predictions += [{"question_id": id, "answer": text} for text in said]
    rng.shuffle(predictions)
    accuracy, counts = official([(p["question_id"], p["answer"]) for p in predictions], truths)
    assert accuracy == pytest.approx(restated(predictions, annotated))
    assert counts["all"] == len(annotated) and len(accuracy) > 3


def test_the_official_rule_counts_duplicates_and_misses_nothing():
    truths = {"a": ("3", "yes"), "b": ("3", "no"), "c": ("7", "1"), "d": ("7", "2")}
    accuracy, counts = official([("a", "yes"), ("a", "yes"), ("b", "yes")], truths)
    assert accuracy == {"all": 0.5, "3": 1.0, "7": 0.0}
    assert counts == {"all": 4, "3": 2, "7": 2}
    truths |= {"e": ("0", "run"), "f": ("0", "swim")}
    accuracy, counts = official([("a", "yes"), ("c", "1"), ("e", "run")], truths, ("3", "7", "8"))
    assert (accuracy["free"], counts["free"]) == (0.5, 4)
    assert (accuracy["all"], counts["all"]) == (0.5, 6)
    with pytest.raises(KeyError):
        official([("none", "yes")], truths)


@pytest.mark.parametrize(
    "prediction, truth, right",
    [
        ("red", "red", True),
        (" red\n", "red", True),
        ("red", "red ", True),
        ("Red", "red", False),
        ("red.", "red", False),
        ("dark red", "red", False),
        ("dark  red", "dark red", False),
        ("", "red", False),
    ],
)
def test_exact_forgives_outer_white_space_and_nothing_else(prediction, truth, right):
    assert exact(prediction, truth) is right


@pytest.mark.parametrize(
    "text, expected",
    [
        ("  To the LEFT. ", "to the left"),
        ("to  the\tleft", "to the left"),
        ("why?!", "why"),
        ("done .", "done"),
        ("3.5 metres", "3.5 metres"),
        ("STRASSE", normalise("straße")),
        ("...", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected
    assert normalise(normalise(text)) == expected
