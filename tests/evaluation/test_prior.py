"""The commonest answer of a type, without the video's own answers."""

from collections import Counter

import numpy as np

from rvllm_jax.evaluation.answers.exact_match import normalise
from rvllm_jax.evaluation.answers.questions import Question
from rvllm_jax.evaluation.prior import FROM_OTHERS, FROM_TRAIN, prior
from rvllm_jax.types import Turn


def test_a_video_does_not_answer_for_itself():
    """Against counting anew for each video, on drawn questions."""
    rng = np.random.default_rng(0)
    asked = [
        Question(str(n), f"v{rng.integers(9)}", Turn("?", f"{'AB cD'[rng.integers(5)]}x", kind))
        for n in range(120)
        for kind in (f"t{rng.integers(3)}",)
    ]
    found = prior(asked)
    assert found["how"] == FROM_OTHERS
    for question in asked:
        others = Counter(
            normalise(q.turn.answer)
            for q in asked
            if q.turn.kind == question.turn.kind and q.video != question.video
        )
        best = min(a for a, count in others.items() if count == max(others.values()))
        assert found["answers"][question.id] == best
    right = [found["answers"][q.id] == normalise(q.turn.answer) for q in asked]
    assert found["accuracy"]["all"] == np.mean(right)
    first = [hit for q, hit in zip(asked, right, strict=True) if q.turn.kind == "t1"]
    assert found["accuracy"]["t1"] == np.mean(first)


def test_one_video_alone_gives_no_prior():
    assert prior([Question("0", "v", Turn("?", "yes"))])["answers"] == {"0": ""}


def test_training_answers_decide_where_there_are_any():
    asked = [Question("0", "v", Turn("?", "no", "a")), Question("1", "w", Turn("?", "no", "b"))]
    train = [Turn("?", "Yes.", "a"), Turn("?", "yes", "a"), Turn("?", "no", "a")]
    found = prior(asked, train)
    assert found["how"] == FROM_TRAIN
    assert found["answers"] == {"0": "yes", "1": ""}  # of type b nothing is known
    assert found["accuracy"] == {"all": 0.0, "a": 0.0, "b": 0.0}


def test_of_equally_common_answers_the_first_in_the_alphabet_counts():
    """Also where one was commoner before the video's own answers were taken off."""
    said = [("v", "b"), ("w", "b"), ("w", "b"), ("x", "a"), ("x", "a"), ("v", "c")]
    asked = [Question(str(n), video, Turn("?", answer)) for n, (video, answer) in enumerate(said)]
    assert prior(asked)["answers"] == {
        "0": "a", "1": "a", "2": "a", "3": "b", "4": "b", "5": "a",
    }  # fmt: skip
