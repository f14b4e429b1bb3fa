"""The rows of a dataset as text: each token that the model sees, and which of them it learns."""

import itertools
from collections.abc import Iterator

import numpy as np

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.types import NO_SLOT, PREFIX, Batch

LEGEND = (
    "Tokens stand between bars. '=' learned: counts in the loss; '.' masked: seen, not learned. "
    "Each question sees the prefix and itself."
)


def show_rows(dataset: Dataset, tokenizer: Tokenizer, rows: int) -> str:
    """The first `rows` rows of a dataset, in the order of its examples, as text.

    A row of whose video the frames cannot be read says so.
    """
    parts = [LEGEND]
    for number, (clip, segments) in enumerate(itertools.islice(_rows(dataset), rows)):
        row = dataset.load(clip, segments, None)
        example = dataset.examples[dataset.clips[clip]]
        used = int((row.segments >= PREFIX).sum())
        parts.append(
            f"row {number}: {example.video!r}, {used} of "
            f"{dataset.context} tokens, {int((row.weights > 0).sum())} learned"
        )
        parts += _segments(row, tokenizer) if used else ["  its frames cannot be read"]
    return "\n".join(parts)


def _rows(dataset: Dataset) -> Iterator[tuple[int, np.ndarray]]:
    return (dataset.sequences[number] for number in range(len(dataset.sequences)))


def _segments(row: Batch, tokenizer: Tokenizer) -> Iterator[str]:
    # `targets` and `weights` stand at the token before: a token is learned where it is a target.
    learned = np.concatenate([[False], row.weights[:-1] > 0])
    for segment in range(PREFIX, int(row.segments.max()) + 1):
        yield "  prefix" if segment == PREFIX else f"  question {segment}"
        own = np.flatnonzero(row.segments == segment)
        for kind, run in itertools.groupby(own, lambda at: (row.slots[at] != NO_SLOT, learned[at])):
            places = list(run)
            yield f"    {'=' if kind[1] else '.'} {_text(row.tokens[places], kind[0], tokenizer)}"


def _text(tokens: np.ndarray, video: bool, tokenizer: Tokenizer) -> str:
    if video:
        return f"<{len(tokens)} visual tokens>"
    pieces = (tokenizer.piece(int(token)) for token in tokens)
    return "|" + "|".join(piece.replace("\n", "\\n") for piece in pieces) + "|"
