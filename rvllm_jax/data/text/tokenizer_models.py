"""What runs a tokenizer's model: a tokenizer.json by the tokenizers library, or a SentencePiece
tokenizer.model, with the tokens that its folder adds, by SentencePiece itself.

Conversions of the second to the first do not keep its ids on arbitrary text (runs of spaces above
all), so nothing is converted here.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece
import tokenizers

from rvllm_jax.data.text.tokenizer_config import (
    ADDED,
    CONFIG,
    FAST,
    SENTENCEPIECE,
    AddedToken,
    TokenizerError,
)
from rvllm_jax.system.fingerprint import digest

_STAGES = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders",
}  # fmt: skip
_NO_PREFIX = {  # what turns the space before a text off in rules that have more to do
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


class FastModel:
    """Text to the ids of a tokenizer.json and back. Picklable.

    identity: equal if and only if the vocabulary and the rules are. file, content: what holds it;
    config: its part of tokenizer_config.json.
    """

    file, config = FAST, {"tokenizer_class": "PreTrainedTokenizerFast"}
    default_specials = {}  # the file does not say which tokens begin and end a text

    def __init__(self, serialized: str):
        """From the text of a tokenizer.json."""
        self.identity, self.content = serialized, serialized.encode()
        plain, opens_with_space = _without_dummy_prefix(json.loads(serialized))
        self._inner = _inner(json.dumps(plain))
        self._opening = _inner(serialized) if opens_with_space else self._inner
        self.vocab_size = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def read(cls, path: Path, added: Mapping[str, AddedToken]) -> "FastModel":
        """Reads a tokenizer.json, and adds those of the tokens beside it that it lacks.

        Raises TokenizerError naming the file: not readable, or an added token has another id there.
        """
        try:
            model = cls(path.read_text(encoding="utf-8"))
            lacking = {t: entry for t, entry in added.items() if model.token_id(t) is None}
            if lacking:
                model = cls(_with_added(json.loads(model.identity), lacking))
        except Exception as error:  # the library raises bare Exceptions
            raise TokenizerError(
                f"{path}: not a tokenizer that the tokenizers library "
                f"{tokenizers.__version__} reads ({error}); write it again"
            ) from error
        for token, entry in added.items():
            if (given := model.token_id(token)) != entry.id:
                raise TokenizerError(
                    f"{path}: gives the added token {token!r} the id {given}, but {CONFIG} or "
                    f"{ADDED} beside it {entry.id}; correct them, or take all files from one place"
                )
        return model

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

    def __reduce__(self):
        return FastModel, (self.identity,)


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
    changed = {}
    for stage, key in _STAGES.items():
        rule = rules.get(stage) or {"type": "Sequence", key: []}
        steps = rule[key] if rule["type"] == "Sequence" else [rule]
        kept = [
            step | _NO_PREFIX.get(step["type"], {})
            for step in steps
            if step["type"] != ("Strip" if stage == "decoder" else "Prepend")
        ]
        if kept != steps:
            changed[stage] = {"type": "Sequence", key: kept} if kept else None
    if changed.keys() <= {"decoder"}:
        return rules, False
    return rules | changed, True


# ModelProto.normalizer_spec (field 3) with add_dummy_prefix (3) and remove_extra_whitespaces (4)
# false. Protocol buffers merge a message that is given twice, so that appending this sets the two.
_KEEP_SPACES = bytes([0x1A, 4, 0x18, 0, 0x20, 0])


class SentencePieceModel:
    """Text to SentencePiece's own ids and back. Picklable.

    Tokens of `added` that are not special are found in a text first, the longest at each place, as
    transformers does; special ones never are. The attributes are those of `FastModel`.
    """

    file = SENTENCEPIECE

    def __init__(self, serialized: bytes, added: Mapping[str, AddedToken]):
        """From the bytes of a tokenizer.model; raises TokenizerError where they are no such."""
        self.content, self.added = serialized, dict(added)
        self._opening = _processor(serialized)
        # What stands inside a text gains no space in front, and keeps its own.
        self._inside = _processor(serialized + _KEEP_SPACES)
        self._pieces = self._opening.get_piece_size()
        for token, entry in self.added.items():
            if entry.id < self._pieces and self._opening.id_to_piece(entry.id) != token:
                raise TokenizerError(
                    f"the added token {token!r} has the id {entry.id}, which {SENTENCEPIECE} gives "
                    f"to {self._opening.id_to_piece(entry.id)!r}; ids from {self._pieces} are free"
                )
        described = {token: vars(entry) for token, entry in self.added.items()}
        self.identity = digest([serialized]) + json.dumps(described, sort_keys=True)
        self._texts = {entry.id: token for token, entry in self.added.items()}
        self._searched = _pattern({t: entry for t, entry in added.items() if not entry.special})
        self.vocab_size = max([self._pieces - 1, *self._texts]) + 1

    @classmethod
    def read(cls, path: Path, added: Mapping[str, AddedToken]) -> "SentencePieceModel":
        """Reads a tokenizer.model; raises TokenizerError naming the file."""
        data = path.read_bytes()
        try:
            return cls(data, added)
        except TokenizerError as error:
            hint = ". It is a Git LFS pointer: run `git lfs pull` in its folder" * (
                data.startswith(b"version https://git-lfs")
            )
            raise TokenizerError(f"{path}: {error}{hint}") from error

    @property
    def default_specials(self) -> dict[str, str | None]:
        """The tokens that the model itself names "bos", "eos" and "pad", or None."""
        ids = {name: getattr(self._opening, f"{name}_id")() for name in ("bos", "eos", "pad")}
        return {n: self._opening.id_to_piece(i) if i >= 0 else None for n, i in ids.items()}

    @property
    def special_ids(self) -> dict[str, int]:
        """The tokens that no text is merged to, with their ids."""
        ids = {token: self.token_id(token) for token in self.default_specials.values() if token}
        return ids | {token: entry.id for token, entry in self.added.items()}

    def encode(self, text: str, opens: bool) -> list[int]:
        """The ids of `text`; opens: it starts a sequence, and is normalised as SentencePiece does.

        Otherwise no space is put before it and its whitespace stays.
        """
        if self._searched is None:
            return self._part(text, opens)
        ids, start = [], 0
        for match in self._searched.finditer(text):
            ids += self._part(text[start : match.start()], opens and not ids)
            ids.append(self.added[match.group(match.lastindex)].id)
            start = match.end()
        return ids + self._part(text[start:], opens and not ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without those outside the vocabulary."""
        text, run = "", []
        for i in ids:
            if i in self._texts:
                text, run = text + self._inside.decode(run) + self._texts[i], []
            elif 0 <= i < self._pieces:
                run.append(i)
        return text + self._inside.decode(run)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text, None where there is none."""
        if token in self.added:
            return self.added[token].id
        number = self._opening.piece_to_id(token)  # that of <unk> for what it does not know
        return number if self._opening.id_to_piece(number) == token else None

    def piece(self, number: int) -> str:
        """A token as the vocabulary writes it."""
        if number in self._texts:
            return self._texts[number]
        return self._opening.id_to_piece(number) if number < self._pieces else f"<{number}>"

    @property
    def config(self) -> dict:
        """Its part of tokenizer_config.json."""
        added = {str(entry.id): entry.described(token) for token, entry in self.added.items()}
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
        return config | ({"added_tokens_decoder": added} if added else {})

    def __reduce__(self):
        return SentencePieceModel, (self.content, self.added)

    def _part(self, text: str, opens: bool) -> list[int]:
        return (self._opening if opens else self._inside).encode(text) if text else []


def _processor(serialized: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        if not serialized:
            raise RuntimeError("it is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=serialized)
    except RuntimeError as error:
        raise TokenizerError(
            f"not a whole SentencePiece model, {len(serialized)} bytes ({error}); copy it again, "
            "or where it is of another kind (Llama 3's), give the folder with its tokenizer.json"
        ) from error


def _pattern(tokens: Mapping[str, AddedToken]) -> re.Pattern | None:
    """Finds added tokens, each a group of its own; None where there are none."""
    alternatives = [
        r"\s*" * entry.lstrip + f"({re.escape(token)})" + r"\s*" * entry.rstrip
        for token, entry in sorted(tokens.items(), key=lambda item: -len(item[0]))
    ]
    return re.compile("|".join(alternatives)) if alternatives else None
