"""The ids that a model reads before it answers, as arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rvllm_jax.data.annotations.llava import MARKS
from rvllm_jax.data.batches import packing
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import Questions, VisualLayout

MULTIPLE = 32  # tokens; prompts are padded to one, so that few lengths are compiled


class PromptError(RvllmError, ValueError):
    """A question that is empty, or that does not fit the context; says the lengths."""


@dataclasses.dataclass
class AnsweredTurn:
    """A question and the ids of its answer, without the id that ended it."""

    question: str
    ids: list[int]


def prefixes(
    tokenizer: Tokenizer,
    template: prompt.Template,
    layout: VisualLayout,
    frames,
    frame_mask,
    counts,
) -> Questions:
    """Clips as rows without questions; frames uint8[C, T, H, W, 3], frame_mask bool[C, T], counts
    int[C] or None."""
    before, after = prompt.prefix_ids(tokenizer, template)
    heads = [
        packing.prefix(before, after, visual=layout.filled(int(mask.sum()))) for mask in frame_mask
    ]
    length = round_up(max(map(len, heads)), MULTIPLE)
    rows = [packing.pack_sequence(head, [], length) for head in heads]
    fields = ("tokens", "slots", "positions", "segments")
    C = len(frames)
    return Questions(
        frames=frames,
        frame_mask=frame_mask,
        **{field: np.stack([row[field] for row in rows]) for field in fields},
        question_tokens=np.zeros((C, 0, 0), np.int32),
        question_mask=np.zeros((C, 0, 0), bool),
        ids=np.zeros((C, 0), np.int32),
        view_counts=np.ones(C, np.int32) if counts is None else np.asarray(counts, np.int32),
    )


def prefix_length(
    tokenizer: Tokenizer, template: prompt.Template, layout: VisualLayout, frame_mask: np.ndarray
) -> int:
    """Tokens up to the video's end, of the clip bool[C, T] that has most."""
    visual = max(len(layout.filled(int(mask.sum()))) for mask in frame_mask)
    return sum(map(len, prompt.prefix_ids(tokenizer, template))) + visual


def without_mark(question: str) -> str:
    """`question` without a leading mark of the video, as training reads it (annotations/llava.py).

    Raises PromptError where a mark stands anywhere else.
    """
    mark = next((mark for mark in MARKS if question.lstrip().startswith(mark)), None)
    plain = question if mark is None else question.lstrip().removeprefix(mark).strip()
    for mark in MARKS:
        if mark in plain:
            raise PromptError(
                f"the question {question!r} has {mark} where no video can go; it may stand once, "
                "at the beginning: remove it, the video comes before the question anyway"
            )
    return plain


def asked(
    tokenizer: Tokenizer,
    template: prompt.Template,
    question: str,
    turns: Sequence[AnsweredTurn],
    *,
    prefix: int,
    context: int,
) -> list[int]:
    """The ids behind the video, up to where the answer starts.

    prefix: tokens up to the video's end. Raises PromptError as `without_mark`, where the question
    is empty, where no token of `context` is left for an answer, and where the template cannot show
    `turns`.
    """
    question = without_mark(question)
    if not question.strip():
        raise PromptError(f"the question is empty ({question!r}): ask something")
    if not question.isascii() and question != question.encode(errors="replace").decode():
        raise PromptError(f"the question {question!r} is not UTF-8: correct it")
    if turns and not template.shows_question:
        raise PromptError(
            "the template shows no questions, so that turns cannot follow each other: begin a new "
            "conversation, or choose another template"
        )
    ids, end = [], prompt.end_id(tokenizer, template)
    for number, turn in enumerate(turns):
        ids += prompt.question_ids(tokenizer, template, turn.question, first=number == 0)
        ids += [*turn.ids, end]
    ids += prompt.question_ids(tokenizer, template, question, first=not turns)
    if prefix + len(ids) >= context:
        raise PromptError(
            f"the prompt has {prefix} tokens up to the video's end and {len(ids)} of "
            f"{len(turns)} turns and the question, but the context is {context}: ask a shorter "
            "question or begin a new conversation"
        )
    return ids


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """int32[Q, L] ids, padded on the right, and bool[Q, L], True where an id is."""
    length = round_up(max(map(len, prompts)), MULTIPLE)
    mask = np.arange(length) < np.array([[len(ids)] for ids in prompts])
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = [token for ids in prompts for token in ids]
    return tokens, mask


def batch_size(number: int) -> int:
    """How many rows `number` questions are read as: 1, 2, 3, 4, 6, 8, 12, ..., so that few numbers
    are compiled."""
    power = 1 << (number - 1).bit_length()
    return power * 3 // 4 if 4 * number <= 3 * power else power


def round_up(number: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-number // multiple) * multiple
