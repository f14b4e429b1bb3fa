"""From turns of a dialogue to token ids: what surrounds video, questions and answers.

The video stands first, where LLaVA moves it. Everything up to and including the newline behind it
is the prefix, the same for all questions of a video; prefix and remainder are tokenized apart, and
so are each question and its answer, in training and when answering alike. The loss mask follows
from that: no token spans a question and an answer.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from rvllm_jax.data.conversations import Conversation, Turn
from rvllm_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Template:
    """The texts around what varies.

    A prompt is: bos, `before`, the video, `after`, then a turn is `first` (the first turn) or
    `later`, the question, `asks`, `answers`, the answer, eos.
    """

    before: str
    after: str
    first: str
    later: str
    asks: str
    answers: str


# Vicuna v1.1 (FastChat, conversation.py; LLaVA's "v1"): no separator between eos and "USER".
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: "
)
TEMPLATES = {
    "vicuna_v1": Template(_VICUNA, "\n", "", "USER: ", " ASSISTANT:", " "),
    # Four tokens a question fewer: for decoders that are trained from nothing.
    "short": Template("", "\n", "", "", "", " "),
}


def prefix_ids(tokenizer: Tokenizer, template: Template) -> tuple[list[int], list[int]]:
    """The ids before the video, bos first where the tokenizer has one, and those behind it."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    before = tokenizer.encode(template.before, opens=True)
    return bos + before, tokenizer.encode(template.after)


def question_ids(
    tokenizer: Tokenizer, template: Template, question: str, *, first: bool = True
) -> list[int]:
    """One question's ids up to the place where its answer starts."""
    opening = template.first if first else template.later
    return tokenizer.encode(opening + question + template.asks)


def segment_ids(
    tokenizer: Tokenizer, template: Template, turns: Sequence[Turn]
) -> tuple[list[int], list[int]]:
    """The ids of turns that follow each other behind the video, and their loss weights.

    Returns two lists of one length; a weight is 1 for the tokens of an answer and the eos behind
    it, 0 for those of a question.
    """
    ids, weights = [], []
    for number, turn in enumerate(turns):
        asked = question_ids(tokenizer, template, turn.question, first=number == 0)
        answered = tokenizer.encode(template.answers + turn.answer) + [tokenizer.eos_id]
        ids += asked + answered
        weights += [0] * len(asked) + [1] * len(answered)
    return ids, weights


def texts(template: Template, conversations: Sequence[Conversation]) -> Iterator[str]:
    """Every text that these conversations put to a tokenizer, piece by piece, to train one on."""
    yield template.before
    yield template.after
    for conversation in conversations:
        yield conversation.caption
        for number, turn in enumerate(conversation.turns):
            opening = template.first if number == 0 else template.later
            yield opening + turn.question + template.asks
            yield template.answers + turn.answer
