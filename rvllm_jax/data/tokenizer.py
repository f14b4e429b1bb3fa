"""Text to token ids and back, without loss: a folder of the user's, or one trained on the text.

The trained tokenizer is a byte-fallback BPE: characters that the training text lacks fall apart
into their UTF-8 bytes, and nothing replaces spaces, so that any text round-trips. A folder of
Hugging Face's (tokenizer.json) is read too; there `decode(encode(text))` keeps what that
tokenizer keeps.
"""

import collections
import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SMALLEST = 3 + len(_BYTES)
MIN_VOCAB = _SMALLEST + 1  # the least `vocab_size` of a tokenizer that is trained
# Words and runs of symbols keep the space before them; a digit stands alone. As letters and symbols
# never share a piece, no merge can spell "</s>" or "<0x41>" and so take a special token's id.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_FILE, _CONFIG, _MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


class TokenizerError(ValueError):
    """A folder that holds no usable tokenizer, or a size that none can have; says what to do."""


class Tokenizer:
    """Encodes text to ids and decodes ids to text. Picklable.

    bos_id may be None, where a tokenizer knows no start of text. pad_id falls back to eos_id.
    """

    def __init__(self, serialized: str, specials: dict[str, str | None]):
        """From the text of a tokenizer.json and the names of "bos", "eos" and "pad"."""
        self._serialized, self._specials = serialized, dict(specials)
        plain, self._opens_with_space = _without_dummy_prefix(json.loads(serialized))
        self._inner = tokenizers.Tokenizer.from_str(json.dumps(plain))
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # "</s>" inside a text is text
        # Questions and answers recur, between clips and between the stages of a run.
        self._remembered = functools.lru_cache(maxsize=1 << 16)(self._encode)
        self.bos_id, self.eos_id = self._id("bos"), self._id("eos")
        if self.eos_id is None:
            raise TokenizerError(
                f"the tokenizer names no end-of-text token (eos is {specials.get('eos')!r}): "
                f"set eos_token in {_CONFIG} to a token of its vocabulary"
            )
        pad = self._id("pad")
        self.pad_id = self.eos_id if pad is None else pad
        self.vocab_size = max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        """The ids of `text`, without special tokens, whatever the text says.

        opens: the text stands at the start of a sequence. Llama's tokenizers put a space there,
        and only there, so that parts tokenized apart join to what the whole would give.
        """
        if opens and self._opens_with_space and text:
            text = " " + text
        return list(self._remembered(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bos, eos and pad are skipped, as are ids outside the vocabulary.

        Bytes that are not valid UTF-8 (a model may write such) become U+FFFD.
        """
        skipped = {self.bos_id, self.eos_id, self.pad_id}
        kept = [int(i) for i in ids if int(i) not in skipped]
        return self._inner.decode(kept, skip_special_tokens=False)

    @property
    def fingerprint(self) -> str:
        """Names the vocabulary, the rules and the special tokens: equal if and only if they are."""
        text = self._serialized + json.dumps(self._specials, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `load` and transformers read.

        A file that says the same already is left alone, another one replaced whole: checkpoints
        depend on these ids, so that a process killed here must not leave half of them.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {f"{name}_token": token for name, token in self._specials.items() if token}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        _replace(folder / _CONFIG, text + "\n")
        _replace(folder / _FILE, self._serialized)  # last: where it stands the tokenizer is whole

    def __reduce__(self):
        return Tokenizer, (self._serialized, self._specials)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._inner.encode(text, add_special_tokens=False).ids)

    def _id(self, name: str) -> int | None:
        token = self._specials.get(name)
        return None if token is None else self._inner.token_to_id(token)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-fallback BPE of at most `vocab_size` tokens; the same texts give the same bytes.

    Ids: <pad> 0, <s> 1, </s> 2, the 256 bytes, the texts' characters (the most frequent, at most
    half of the remaining room), then the merges.
    """
    texts = list(texts)
    if vocab_size < _SMALLEST + 1:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: {_SMALLEST} are special tokens and bytes, "
            f"which every text needs; give at least {_SMALLEST + 1}"
        )
    counts = collections.Counter(c for text in texts for c in text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    room = max(1, (vocab_size - _SMALLEST) // 2)
    # The library breaks ties of a limited alphabet by hash order, so the alphabet is cut here.
    alphabet = sorted(ranked[:room])
    inner = _empty(models.BPE(byte_fallback=True))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *_BYTES],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    # Rebuilt, because the trainer leaves the byte tokens behind as special tokens.
    model = json.loads(inner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    inner = _empty(models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True))
    inner.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(inner.to_str(), {"bos": BOS, "eos": EOS, "pad": PAD})


def load(folder: Path | str) -> Tokenizer:
    """Reads a folder with a tokenizer.json: one that `save` wrote, or a Hugging Face model's.

    Raises TokenizerError: no such folder, no tokenizer.json in it, unreadable JSON, no eos.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(
            f"{folder}: no such folder; expected one with a {_FILE} (set config.tokenizer.folder "
            "to a tokenizer's folder, or leave it empty to train one on the text)"
        )
    if not (folder / _FILE).is_file():
        found = "only tokenizer.model" if (folder / "tokenizer.model").is_file() else "none"
        raise TokenizerError(
            f"{folder}: expected a {_FILE}, found {found}. A SentencePiece tokenizer.model alone "
            f"is not read: save the model's fast tokenizer there, which writes the {_FILE}"
        )
    named = {**_json(folder / _MAP), **_json(folder / _CONFIG)}
    specials = {name: _content(named.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    try:
        return Tokenizer((folder / _FILE).read_text(encoding="utf-8"), specials)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(
            f"{folder / _FILE}: not a tokenizer that the tokenizers library "
            f"{tokenizers.__version__} reads ({error}); write it again"
        ) from error


def _empty(model: models.BPE) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return inner


def _replace(path: Path, text: str) -> None:
    data = text.encode()
    if path.is_file() and path.read_bytes() == data:
        return
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not JSON ({error}); write it again") from error


def _content(token: str | dict | None) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


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
