"""The chat template that a Hugging Face folder brings, in Jinja, as one of ours.

It is rendered once, with marks for the video, the questions and the answers; the texts between the
marks are the template. So the prompt at training and at test comes from one place, and what depends
on anything else than the turns (the date, their number) is refused.
"""

import json

import jinja2
from jinja2 import ext, sandbox

from rvllm_jax.data.text.template import ChatError, Template, split_at
from rvllm_jax.data.text.tokenizer import Tokenizer

_TURNS = 3  # the first differs from the others, which must be alike
_VIDEO = "\ue000video\ue000"
_QUESTIONS = [f"\ue000question{n}\ue000" for n in range(_TURNS)]
_ANSWERS = [f"\ue000answer{n}\ue000" for n in range(_TURNS)]
_WHERE = "the tokenizer's own chat template (config.data.template='folder')"


class _Generation(ext.Extension):
    """{% generation %} marks answers for transformers; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read(tokenizer: Tokenizer) -> Template:
    """The tokenizer's `chat_template`; ChatError says why it cannot be used.

    It is used as transformers does, with no system message given, no tools, and no date, and with
    the video and a line break before the first question.
    """
    render = _renderer(tokenizer)
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):
        try:
            whole, asked = render(_messages(wrap), False), render(_messages(wrap)[:1], True)
        except Exception as error:  # a template may do anything, and raise what it likes
            failed = error
            continue
        if _VIDEO in whole and all(mark in whole for mark in (*_QUESTIONS, *_ANSWERS)):
            return _between(whole, asked, tokenizer)
        failed = None
    if failed is not None:
        raise ChatError(f"{_WHERE} fails: {type(failed).__name__}: {failed}") from failed
    raise ChatError(
        f"{_WHERE} has no place for the video: it leaves out what the user or the assistant says; "
        "correct it, or choose another template"
    )


def _renderer(tokenizer: Tokenizer):
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )

    def fail(message):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = fail
    environment.filters["tojson"] = lambda value, **how: json.dumps(
        value, ensure_ascii=False, **how
    )
    named = {f"{name}_token": token or "" for name, token in tokenizer.specials.items()}
    try:
        template = environment.from_string(tokenizer.chat_template)
    except jinja2.TemplateError as error:
        raise ChatError(f"{_WHERE} is no Jinja template: {error}") from error
    return lambda messages, prompt: template.render(
        messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **named
    )


def _messages(wrap) -> list[dict]:
    messages = []
    for number, (question, answer) in enumerate(zip(_QUESTIONS, _ANSWERS, strict=True)):
        question = f"{_VIDEO}\n{question}" if number == 0 else question
        messages += [{"role": "user", "content": wrap(question)}]
        messages += [{"role": "assistant", "content": wrap(answer)}]
    return messages


def _between(whole: str, asked: str, tokenizer: Tokenizer) -> Template:
    """The texts between the marks of a rendered dialogue."""
    marks = [_VIDEO, *(m for turn in zip(_QUESTIONS, _ANSWERS, strict=True) for m in turn)]
    texts, rest = [], whole
    for mark in marks:
        text, found, rest = rest.partition(mark)
        if not found:
            raise ChatError(f"{_WHERE} changes the order of the turns; choose another template")
        texts.append(text)
    before, after, reply, between, *later = texts
    if "\ue000" in "".join([*texts, rest]):
        raise ChatError(f"{_WHERE} writes a turn twice; choose another template")
    if later != [reply, between, reply]:
        raise ChatError(
            f"{_WHERE} writes turns differently by their number ({[reply, between]} and "
            f"{later}); choose another template"
        )
    asks = asked.rpartition(_QUESTIONS[0])[2]
    if asked != whole[: whole.index(_QUESTIONS[0]) + len(_QUESTIONS[0])] + asks or (
        not reply.startswith(asks)
    ):
        raise ChatError(
            f"{_WHERE} does not ask ({asked[-80:]!r}) as it writes dialogues ({reply!r} before an "
            "answer): the prompts at training and at test would differ; choose another template"
        )
    special = tuple(tokenizer.special_ids)
    closes, *ending = split_at(special, between)
    if not ending or not rest.startswith(closes + ending[0]):
        raise ChatError(
            f"{_WHERE} ends answers by no special token ({between!r} between turns, {rest!r} at "
            "the end), so that none would stop; choose another template"
        )
    bos = tokenizer.specials["bos"]
    opens = bool(bos) and before.startswith(bos)
    made = [before.removeprefix(bos) if opens else before, after, "", "".join(ending[1:])]
    made += [asks, reply.removeprefix(asks), closes]
    used = [token for text in made for token in split_at(special, text)[1::2]]
    return Template(*made, ends=ending[0], specials=tuple(dict.fromkeys(used)), bos=opens)
