"""Scores over the questions of a split."""

import collections
from collections.abc import Sequence

from rvllm_jax.evaluation.answers.exact_match import exact

ALL = "all"


def accuracy_by_type(
    kinds: Sequence[str], predictions: Sequence[str | None], references: Sequence[str]
) -> tuple[dict[str, float], dict[str, int]]:
    """The share of questions answered exactly, over all and by question type.

    Every question counts in the denominators: one that could not be asked (its clip is bad) has
    the prediction None and is wrong.

    Args:
      kinds: type of each question; "" for none, which counts under "all" only.
      predictions: the model's answer to each, or None.
      references: the right answer to each.

    Returns:
      (accuracy, counts): `{"all": share, TYPE: share, ...}` and the number of questions likewise,
      types in alphabetical order.

    Raises:
      ValueError: no questions, sequences of different lengths, or a type named "all".

    >>> accuracy_by_type(["colour", "form", ""], ["red", None, "yes"], ["red", "disc", "no"])
    ({'all': 0.3333333333333333, 'colour': 1.0, 'form': 0.0}, {'all': 3, 'colour': 1, 'form': 1})
    """
    if not len(kinds) == len(predictions) == len(references):
        raise ValueError(
            f"got {len(kinds)} types, {len(predictions)} predictions and {len(references)} "
            "references; expected one of each for every question"
        )
    if not kinds:
        raise ValueError("no questions to score: leave out the split that has none")
    if ALL in kinds:
        raise ValueError(f"question type {ALL!r} is the name of the total: name the type otherwise")
    right: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for kind, prediction, reference in zip(kinds, predictions, references, strict=True):
        for name in {ALL, kind or ALL}:
            counts[name] += 1
            right[name] += prediction is not None and exact(prediction, reference)
    names = [ALL, *sorted(counts.keys() - {ALL})]
    return {n: right[n] / counts[n] for n in names}, {n: counts[n] for n in names}
