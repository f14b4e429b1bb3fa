"""Chat templates: the texts that surround the video, the questions and the answers.

Beside those of LLaVA, which have names, a tokenizer's folder may bring one in Jinja. That one is
rendered once, with marks for the video, the questions and the answers; the texts between the marks
are the template. So the prompt at training and at test comes from one place, and what depends on
anything else than the turns (their number) is refused.

It is rendered here and not by transformers (`apply_chat_template`), which gives templates the date:
Llama 3.1's writes it, and the prompts would change from the day of training to the day of the test.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import ext, sandbox

from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.system.errors import RvllmError


class ChatTemplateError(RvllmError, ValueError):
    """A prompt that cannot be spelled, or that would teach nothing; says what to do."""


@dataclasses.dataclass(frozen=True)
class Template:
    """The texts around what varies.

    A prompt is: bos, `before`, the video, `after`, then a turn is `first` (the first turn) or
    `later`, the question, `asks`, `answers`, the answer, `closes`, the token `ends`.
    `answers` to `ends` are learned, the rest is given.
    """

    before: str
    after: str
    first: str
    later: str
    asks: str
    answers: str
    closes: str = ""
    ends: str = ""  # the token by which an answer ends; "": the tokenizer's eos
    specials: tuple[str, ...] = ()  # in these texts, unlike in a question, they are special tokens
    bos: bool = True  # the tokenizer's bos, where it has one, comes first
    shows_question: bool = True


@functools.lru_cache
def split_at(specials: tuple[str, ...], text: str) -> list[str]:
    """Text, special token, text, ..., text; the longest token at each place."""
    longest_first = sorted(specials, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if specials else [text]


# FastChat and LLaVA (conversation.py): no separator between eos and "USER".
_VICUNA = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {0}'s questions. USER: "
)
_SEES = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
_SYSTEM, _USER, _ASSISTANT = (_HEADER.format(role) for role in ("system", "user", "assistant"))

TEMPLATES = {
    # LLaVA 1.5, Vicuna v1.1 and v1.5.
    "vicuna_v1": Template(_VICUNA.format("user"), "\n", "", "USER: ", " ASSISTANT:", " "),
    # Four tokens a question fewer: for decoders that are trained from nothing.
    "short": Template("", "\n", "", "", "", " "),
    # LLaVA's "llava_v1": "human" for "user".
    "llava_v1": Template(_VICUNA.format("human"), "\n", "", "USER: ", " ASSISTANT:", " "),
    # LLaVA's "plain", of its first stage: the video and its caption, and no question.
    "plain": Template("", "", "", "", "\n", "", ends="\n", shows_question=False),
    # LLaVA's "llava_llama_2". Each later turn is a sequence of its own, from <s> to </s>.
    "llama-2-chat": Template(
        f"[INST] <<SYS>>\n{_SEES}\n<</SYS>>\n\n", "\n", "", "<s>[INST] ", " [/INST]", " ", " ",
        ends="</s>", specials=("<s>",),
    ),
    # LLaVA-NeXT's "llava_llama_3", by the chat template of Meta-Llama-3-8B-Instruct.
    "llama-3": Template(
        f"{_SYSTEM}{_SEES}<|eot_id|>{_USER}", "\n", "", _USER, f"<|eot_id|>{_ASSISTANT}", "",
        ends="<|eot_id|>", specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # LLaVA-NeXT's "qwen_1_5". The tokenizers that know these tokens put no bos before them.
    "chatml": Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n", "\n",
        "", "\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "",
        ends="<|im_end|>", specials=("<|im_start|>", "<|im_end|>"), bos=False,
    ),
}  # fmt: skip

_TURNS = 3  # the first differs from the others, which must be alike
_SIGN = "\ue000"  # around a mark in the rendered text
_MARKS = ["video", *(f"{part}{n}" for n in range(_TURNS) for part in ("question", "answer"))]


class _Generation(ext.Extension):
    """{% generation %} marks answers for transformers; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_jinja(tokenizer: Tokenizer) -> Template:
    """The tokenizer's `chat_template`; ChatTemplateError says why it cannot be used.

    It is used as transformers does, with no system message given, no tools, and no date, and with
    the video and a line break before the first question.
    """
    render = _renderer(tokenizer)
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):
        dialogue = _dialogue(wrap)
        try:
            whole, asked = render(dialogue, False), render(dialogue[:1], True)
        except Exception as error:  # a template may do anything, and raise what it likes
            wrong = f"fails: {type(error).__name__}: {error}"
            continue
        if set(_MARKS) <= set(whole.split(_SIGN)):
            return _between(whole, asked, tokenizer)
        wrong = "has no place for the video: it leaves out what the user or the assistant says"
    raise _refusal(wrong)


def _refusal(why: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"the tokenizer's own chat template (config.data.template='folder') {why}; correct it, or "
        "choose another template"
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
        raise _refusal(f"is no Jinja template: {error}") from error
    return lambda messages, prompt: template.render(
        messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **named
    )


def _dialogue(wrap: Callable[[str], Any]) -> list[dict]:
    """The messages of a few turns, marks instead of texts; wrap: a text -> a message's content."""
    marks = [f"{_SIGN}{mark}{_SIGN}" for mark in _MARKS]
    texts = [f"{marks[0]}\n{marks[1]}", *marks[2:]]
    roles = ["user", "assistant"] * _TURNS
    return [{"role": r, "content": wrap(text)} for r, text in zip(roles, texts, strict=True)]


def _between(whole: str, asked: str, tokenizer: Tokenizer) -> Template:
    """The texts between the marks of a rendered dialogue, and of its first question asked."""
    pieces = whole.split(_SIGN)
    if len(pieces) > 2 * len(_MARKS) + 1:
        raise _refusal("writes a turn twice")
    if pieces[1::2] != _MARKS:
        raise _refusal("changes the order of the turns")
    before, after, reply, between, *later, rest = pieces[::2]
    if later != [reply, between, reply]:
        raise _refusal(f"writes turns differently by their number ({[reply, between]} and {later})")
    *opening, asks = asked.split(_SIGN)
    if opening != pieces[:4] or not reply.startswith(asks):
        raise _refusal(
            f"does not ask ({asked[-80:]!r}) as it writes dialogues ({reply!r} before an answer): "
            "the prompts at training and at test would differ"
        )
    special = tuple(tokenizer.special_ids)
    closes, *ending = split_at(special, between)
    if not ending or not rest.startswith(closes + ending[0]):
        raise _refusal(
            f"ends answers by no special token ({between!r} between turns, {rest!r} at the end), "
            "so that none would stop"
        )
    bos = tokenizer.specials["bos"]
    opens = bool(bos) and before.startswith(bos)
    made = [before.removeprefix(bos) if opens else before, after, "", "".join(ending[1:])]
    made += [asks, reply.removeprefix(asks), closes]
    used = [token for text in made for token in split_at(special, text)[1::2]]
    return Template(*made, ends=ending[0], specials=tuple(dict.fromkeys(used)), bos=opens)
