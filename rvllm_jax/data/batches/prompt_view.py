"""The sequences of a dataset as text: each token the model sees, and which of them it learns."""

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


def show_sequences(dataset: Dataset, tokenizer: Tokenizer, count: int) -> str:
    """The first `count` sequences of a dataset, in the order of its examples, as text.

    One whose frames cannot be read is marked as such.
    """
    parts = [LEGEND]
    for number, (video, segments) in enumerate(itertools.islice(dataset.sequences, count)):
        row = dataset.load(video, segments, None)
        used = int((row.segments >= PREFIX).sum())
        parts.append(
            f"row {number}: {dataset.video_name(video)!r}, {used} of "
            f"{dataset.options.context} tokens, {int((row.weights > 0).sum())} learned"
        )
        parts += _segments(row, tokenizer) if used else ["  its frames cannot be read"]
    return "\n".join(parts)


def _segments(row: Batch, tokenizer: Tokenizer) -> Iterator[str]:
    # `targets` and `weights` stand at the token before: a token is learned where it is a target.
    learned = np.concatenate([[False], row.weights[:-1] > 0])
    for segment in range(PREFIX, int(row.segments.max()) + 1):
        yield "  prefix" if segment == PREFIX else f"  question {segment}"
        indices = np.flatnonzero(row.segments == segment)
        kinds = itertools.groupby(indices, lambda at: (row.slots[at] != NO_SLOT, learned[at]))
        for (is_visual, is_learned), run in kinds:
            text = _text(row.tokens[list(run)], is_visual, tokenizer)
            yield f"    {'=' if is_learned else '.'} {text}"


def _text(tokens: np.ndarray, is_visual: bool, tokenizer: Tokenizer) -> str:
    if is_visual:
        return f"<{len(tokens)} visual tokens>"
    pieces = (tokenizer.piece(int(token)) for token in tokens)
    return "|" + "|".join(piece.replace("\n", "\\n") for piece in pieces) + "|"
