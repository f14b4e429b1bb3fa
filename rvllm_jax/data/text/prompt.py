"""From turns of a dialogue to token ids: what surrounds video, questions and answers.

The video stands first, where LLaVA moves it. Everything up to and including the newline behind it
is the prefix, the same for all questions of a video; prefix and remainder are tokenized apart, and
so are each question and its answer, in training and when answering alike. The loss mask follows
from that: no token spans a question and an answer.
"""

from collections.abc import Iterator, Sequence

from rvllm_jax.data.text.template import (
    TEMPLATES,
    ChatTemplateError,
    Template,
    read_jinja,
    split_at,
)
from rvllm_jax.data.text.tokenizer import TRAINED_SPECIALS, Tokenizer
from rvllm_jax.types import Example, Turn

FOLDER = "folder"  # the name of the template that the tokenizer's folder brings
TEMPLATE_NAMES = (*TEMPLATES, FOLDER)


def find_template(name: str, tokenizer: Tokenizer | None) -> Template:
    """The template of this name, a key of TEMPLATES or "folder": the tokenizer's own, in Jinja.

    tokenizer: None stands for one that will be trained on the text.
    Raises ChatTemplateError where the tokenizer brings none, or lacks a token that the template
    needs.
    """
    if name != FOLDER:
        template = TEMPLATES[name]
    elif tokenizer is None or tokenizer.chat_template is None:
        raise ChatTemplateError(
            f"config.data.template={FOLDER!r}, but the tokenizer's folder has no chat_template in "
            "tokenizer_config.json and no chat_template.jinja; choose one of "
            f"{', '.join(TEMPLATES)}, or name a folder that has by config.tokenizer.folder"
        )
    else:
        template = read_jinja(tokenizer)
    known = TRAINED_SPECIALS if tokenizer is None else tokenizer.special_ids
    missing = [token for token in template.specials if token not in known]
    if missing:
        raise ChatTemplateError(
            f"config.data.template={name!r} needs the special tokens {', '.join(missing)}, which "
            "the tokenizer lacks: give the folder of a model that was trained with them by "
            "config.tokenizer.folder, or choose another template"
        )
    if tokenizer is not None:
        end_id(tokenizer, template)
    return template


def end_id(tokenizer: Tokenizer, template: Template) -> int:
    """The id by which answers end, in training and when answering."""
    if not template.ends:
        return tokenizer.eos_id
    token = tokenizer.special_ids.get(template.ends)
    ids = tokenizer.encode(template.ends) if token is None else [token]
    if len(ids) != 1:
        raise ChatTemplateError(
            f"the template ends answers by {template.ends!r}, which the tokenizer makes "
            f"{len(ids)} tokens of; choose another template or another tokenizer"
        )
    return ids[0]


def stop_ids(tokenizer: Tokenizer, template: Template) -> tuple[int, ...]:
    """The ids that end an answer when answering: `end_id` first, and the model's own."""
    return tuple(dict.fromkeys([end_id(tokenizer, template), *tokenizer.stop_ids]))


def prefix_ids(tokenizer: Tokenizer, template: Template) -> tuple[list[int], list[int]]:
    """The ids before the video, bos first where the tokenizer has one, and those behind it."""
    bos = [tokenizer.bos_id] if template.bos and tokenizer.bos_id is not None else []
    before = _encode(tokenizer, template, template.before, opens=True)
    return bos + before, _encode(tokenizer, template, template.after)


def question_ids(
    tokenizer: Tokenizer, template: Template, question: str, *, first: bool = True
) -> list[int]:
    """One question's ids up to where its answer starts; raises ChatTemplateError if empty."""
    if not question.strip() and template.shows_question:
        raise ChatTemplateError("the question is empty: write one")
    start, shown = template.first if first else template.later, question * template.shows_question
    return _encode(tokenizer, template, start, shown, template.asks)


def prompt_text(template: Template, question: str) -> str:
    """What a question's prompt reads like, with <video> in the place of the visual tokens."""
    shown = question * template.shows_question
    return f"{template.before}<video>{template.after}{template.first}{shown}{template.asks}"


def segment_ids(
    tokenizer: Tokenizer, template: Template, turns: Sequence[Turn]
) -> tuple[list[int], list[int]]:
    """The ids of turns that follow each other behind the video, and their loss weights.

    Returns two lists of one length; a weight is 1 for the tokens of an answer and the token that
    ends it, 0 for those of a question. Raises ChatTemplateError for a turn of which not
    exactly that would be learned, naming its number.
    """
    if len(turns) > 1 and not template.shows_question:
        raise ChatTemplateError(
            f"its template shows no questions, so that its {len(turns)} turns cannot follow each "
            "other: set config.data.independent_turns=True or choose another template"
        )
    ids, weights, end = [], [], end_id(tokenizer, template)
    for number, turn in enumerate(turns):
        asked = question_ids(tokenizer, template, turn.question, first=number == 0)
        answered = _encode(tokenizer, template, template.answers, turn.answer, template.closes)
        _check(turn, number, asked, answered, end)
        ids += asked + answered + [end]
        weights += [0] * len(asked) + [1] * (len(answered) + 1)
    return ids, weights


def texts(template: Template, examples: Sequence[Example]) -> Iterator[str]:
    """Every text that these examples put to a tokenizer, piece by piece, to train one on."""
    yield template.before
    yield template.after
    for example in examples:
        yield example.caption
        for number, turn in enumerate(example.turns):
            opening = template.first if number == 0 else template.later
            yield opening + turn.question * template.shows_question + template.asks
            yield template.answers + turn.answer + template.closes


def _check(turn: Turn, number: int, asked: list[int], answered: list[int], end: int) -> None:
    """What the loss mask needs to be true of a turn."""
    where = f"turn {number + 1}, {turn.question[:60]!r}"
    if not asked:  # the first token behind the prefix is given, never learned
        raise ChatTemplateError(
            f"{where}: the question has no token, so that the answer's first is lost"
        )
    if not turn.answer.strip() or not answered:
        raise ChatTemplateError(
            f"{where}: the answer {turn.answer[:60]!r} has no token, and would teach nothing; "
            "correct or remove it"
        )
    if end in answered:
        raise ChatTemplateError(
            f"{where}: the answer holds the token that ends answers (id {end}, at place "
            f"{answered.index(end)} of {len(answered)}), and would be cut there when asked; remove "
            "it (a line break, in the template 'plain'), or choose another template"
        )


def _encode(
    tokenizer: Tokenizer, template: Template, *texts: str, opens: bool = False
) -> list[int]:
    """The ids of texts that follow each other: the template's, the user's, the template's, ...

    Special tokens are found in the template's texts alone; text between two of them is tokenized as
    one. Behind bos a sequence starts anew.
    """
    ids, text = [], ""
    for place, part in enumerate(texts):
        start, *rest = [part] if place % 2 else split_at(template.specials, part)
        text += start
        for token, behind in zip(rest[::2], rest[1::2], strict=True):
            ids += [*tokenizer.encode(text, opens=opens), tokenizer.special_ids[token]]
            text, opens = behind, ids[-1] == tokenizer.bos_id
    return ids + tokenizer.encode(text, opens=opens)
