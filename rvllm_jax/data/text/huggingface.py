"""A Hugging Face tokenizer.json, run by the tokenizers library."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers

from rvllm_jax.data.text.tokenizer_config import ADDED, CONFIG, FAST, AddedToken, TokenizerError


class FastModel:
    """Text to the ids of a tokenizer.json and back. Picklable."""

    def __init__(self, serialized: str):
        """From the text of a tokenizer.json."""
        self.serialized = serialized
        plain, opens_with_space = _without_dummy_prefix(json.loads(serialized))
        self._inner = _inner(json.dumps(plain))
        self._opening = _inner(serialized) if opens_with_space else self._inner
        self.vocab_size = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def identity(self) -> str:
        """Equal if and only if the vocabulary and the rules are."""
        return self.serialized

    @property
    def default_specials(self) -> dict[str, str | None]:
        """A tokenizer.json does not say which of its tokens begin and end a text."""
        return {}

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokens that no text is merged to, with their ids."""
        added = self._inner.get_added_tokens_decoder().items()
        return {token.content: number for number, token in added}

    def encode(self, text: str, opens: bool) -> list[int]:
        """The ids of `text`; opens: it starts a sequence, where Llama's put a space."""
        inner = self._opening if opens else self._inner
        return inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without those outside the vocabulary."""
        return self._inner.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text, None where there is none."""
        return self._inner.token_to_id(token)

    def piece(self, number: int) -> str:
        """A token as the vocabulary writes it."""
        return self._inner.id_to_token(number) or f"<{number}>"

    def files(self) -> dict[str, bytes]:
        """The files that hold it, by name."""
        return {FAST: self.serialized.encode()}

    def config(self) -> dict:
        """Its part of tokenizer_config.json."""
        return {"tokenizer_class": "PreTrainedTokenizerFast"}

    def __reduce__(self):
        return FastModel, (self.serialized,)


def read(path: Path, added: Mapping[str, AddedToken]) -> FastModel:
    """Reads a tokenizer.json, and adds those of the tokens beside it that it lacks.

    Raises TokenizerError naming the file: not readable, or an added token has another id there.
    """
    try:
        model = FastModel(path.read_text(encoding="utf-8"))
        lacking = {token: entry for token, entry in added.items() if model.token_id(token) is None}
        if lacking:
            model = FastModel(_with_added(json.loads(model.serialized), lacking))
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(
            f"{path}: not a tokenizer that the tokenizers library "
            f"{tokenizers.__version__} reads ({error}); write it again"
        ) from error
    for token, entry in added.items():
        if (given := model.token_id(token)) != entry.id:
            raise TokenizerError(
                f"{path}: gives the added token {token!r} the id {given}, but {CONFIG} or {ADDED} "
                f"beside it {entry.id}; correct them, or take all files from one place"
            )
    return model


def _with_added(rules: dict, lacking: Mapping[str, AddedToken]) -> str:
    """The text of a tokenizer.json with further tokens, as the library writes them."""
    entries = [{"id": entry.id} | entry.described(token) for token, entry in lacking.items()]
    entries = sorted((rules.get("added_tokens") or []) + entries, key=lambda entry: entry["id"])
    return json.dumps(rules | {"added_tokens": entries})


def _inner(serialized: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer.from_str(serialized)
    inner.no_padding()
    inner.no_truncation()
    inner.encode_special_tokens = True  # "</s>" inside a text is text
    return inner


def _without_dummy_prefix(rules: dict) -> tuple[dict, bool]:
    """Takes the space before every text out of a Llama tokenizer's rules, encoder and decoder.

    Returns the rules and whether there was one. Otherwise each part tokenized apart would gain a
    space of its own, and decoding an answer would lose one.
    """
    prefixed = False
    for stage, key in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        kept = []
        for rule in _steps(rules.get(stage), key):
            if rule["type"] == "Prepend":
                prefixed = True
                continue
            if rule["type"] == "Metaspace" and rule.get("prepend_scheme", "always") != "never":
                prefixed, rule = True, {**rule, "prepend_scheme": "never"}
            if rule["type"] == "ByteLevel" and rule.get("add_prefix_space", True):
                prefixed, rule = True, {**rule, "add_prefix_space": False}
            kept.append(rule)
        if prefixed:
            rules = {**rules, stage: {"type": "Sequence", key: kept} if kept else None}
    if prefixed:
        kept = [
            {**rule, "prepend_scheme": "never"} if rule["type"] == "Metaspace" else rule
            for rule in _steps(rules.get("decoder"), "decoders")
            if rule["type"] != "Strip"
        ]
        rules = {**rules, "decoder": {"type": "Sequence", "decoders": kept} if kept else None}
    return rules, prefixed


def _steps(rule: dict | None, key: str) -> list[dict]:
    if rule is None:
        return []
    return rule[key] if rule["type"] == "Sequence" else [rule]
