"""Chat templates: the texts that surround the video, the questions and the answers."""

import dataclasses
import functools
import re

from rvllm_jax.system.errors import RvllmError


class ChatError(RvllmError, ValueError):
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

    def split(self, text: str) -> list[str]:
        """Text, special token, text, special token, ..., text."""
        return split_at(self.specials, text)


def split_at(specials: tuple[str, ...], text: str) -> list[str]:
    """Text, special token, text, ..., text; the longest token at each place."""
    return _pattern(specials).split(text) if specials else [text]


@functools.lru_cache
def _pattern(specials: tuple[str, ...]) -> re.Pattern:
    ordered = sorted(specials, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")")


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
