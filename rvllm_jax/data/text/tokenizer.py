"""Text to token ids and back: a folder of the user's, or one trained on the text.

The trained tokenizer is a byte-fallback BPE: characters that the training text lacks fall apart
into their UTF-8 bytes, and nothing replaces spaces, so that any text round-trips. Folders of
Hugging Face's are read too, with a tokenizer.json or a SentencePiece tokenizer.model; there
`decode(encode(text))` keeps what that tokenizer keeps.
"""

import collections
import functools
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from absl import logging
from tokenizers import decoders, models, pre_tokenizers, trainers

from rvllm_jax.data.text.tokenizer_config import (
    CONFIG,
    FAST,
    GENERATION,
    SENTENCEPIECE,
    TOKENIZER_FILES,
    TokenizerDescription,
    TokenizerError,
    read_config,
)
from rvllm_jax.data.text.tokenizer_models import FastModel, SentencePieceModel
from rvllm_jax.system.atomic import dump_json, make_folder, write_bytes
from rvllm_jax.system.fingerprint import SHORT, digest

PAD, BOS, EOS = TRAINED_SPECIALS = "<pad>", "<s>", "</s>"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SMALLEST = 3 + len(_BYTES)
MIN_VOCAB = _SMALLEST + 1  # the least `vocab_size` of a tokenizer that is trained
# Words and runs of symbols keep the space before them; a digit stands alone. As letters and symbols
# never share a piece, no merge can spell "</s>" or "<0x41>" and so take a special token's id.
_PIECES = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_PROBES = (
    "a b",
    "  a   b  ",
    "\n\n a\t\tb",
    "    ",
    "a" * 9 + " " * 9 + "1234",
    "\u6f22\U0001f642",
)


class Tokenizer:
    """Encodes text to ids and decodes ids to text. Picklable.

    bos_id may be None, where a tokenizer knows no start of text. pad_id falls back to eos_id.
    specials: the texts of "bos", "eos" and "pad". special_ids: the ids of these and of the added
    tokens, such as "<|im_end|>", by their texts.
    chat_template: the folder's own, in Jinja, or None (data/text/template.py reads it).
    stop_ids: eos_id, and the others by which the model's own files end an answer. A list without
    eos is of another tokenizer, and does not count.
    """

    def __init__(
        self,
        model: FastModel | SentencePieceModel,
        specials: dict[str, str | None],
        chat_template: str | None = None,
        stop_ids: tuple[int, ...] = (),
    ):
        """From a model and the names of "bos", "eos" and "pad"; those left out are the model's."""
        self.model, self.chat_template = model, chat_template
        self.specials = {
            name: specials.get(name) or model.default_specials.get(name)
            for name in ("bos", "eos", "pad")
        }
        ids = {name: token and model.token_id(token) for name, token in self.specials.items()}
        self.bos_id, self.eos_id = ids["bos"], ids["eos"]
        if self.eos_id is None:
            raise TokenizerError(
                f"the tokenizer names no end-of-text token (eos is {self.specials['eos']!r}): "
                f"set eos_token in {CONFIG} to a token of its vocabulary"
            )
        if self.bos_id is None and self.specials["bos"]:
            raise TokenizerError(
                f"the start-of-text token {self.specials['bos']!r} is not in the vocabulary: set "
                f"bos_token in {CONFIG} to a token of it, or to null where there is none"
            )
        self.pad_id = self.eos_id if ids["pad"] is None else ids["pad"]
        named = {self.specials[name]: id for name, id in ids.items() if id is not None}
        self.special_ids = named | model.special_ids
        self.vocab_size = model.vocab_size
        others = stop_ids if self.eos_id in stop_ids else ()
        self.stop_ids = tuple(dict.fromkeys([self.eos_id, *others]))
        # Questions and answers recur, between clips and between the stages of a run.
        self._remembered = functools.lru_cache(maxsize=1 << 16)(model.encode)

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        """The ids of `text`, without special tokens, whatever the text says.

        opens: the text stands at the start of a sequence. Llama's tokenizers put a space there,
        and only there, so that parts tokenized apart join to what the whole would give.
        """
        return list(self._remembered(text, opens))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bos, eos and pad are skipped, as are ids outside the vocabulary.

        Bytes that are not valid UTF-8 (a model may write such) become U+FFFD.
        """
        skipped = {self.bos_id, self.eos_id, self.pad_id}
        return self.model.decode(int(i) for i in ids if int(i) not in skipped)

    def piece(self, number: int) -> str:
        """A token as the vocabulary writes it, such as "▁colour" or "<0x0A>"."""
        return self.model.piece(number)

    @property
    def fingerprint(self) -> str:
        """Names the vocabulary, the rules and the special tokens: equal if and only if they are."""
        text = self.model.identity + json.dumps(self.specials, sort_keys=True)
        return digest([text], SHORT)

    def save(self, folder: Path | str) -> None:
        """Writes the model's file and tokenizer_config.json, which `load` and transformers read.

        A file of the same content is left alone, another one replaced whole: checkpoints depend on
        these ids, so that a process killed here must not leave half of them.
        """
        folder = make_folder(folder)
        config = {f"{name}_token": token for name, token in self.specials.items() if token}
        config |= self.model.config
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        text = dump_json(config, indent=2, sort_keys=True, ensure_ascii=False)
        files = {CONFIG: text.encode()}
        if len(self.stop_ids) > 1:
            stops = dump_json({"eos_token_id": list(self.stop_ids)}, indent=None)
            files[GENERATION] = stops.encode()
        files[self.model.file] = self.model.content  # last: where it stands the tokenizer is whole
        for other in {*TOKENIZER_FILES, GENERATION} - files.keys():
            (folder / other).unlink(missing_ok=True)  # of another tokenizer
        for name, data in files.items():
            write_bytes(folder / name, data, only_new=True, synced=True)

    def __reduce__(self):
        return Tokenizer, (self.model, self.specials, self.chat_template, self.stop_ids)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-fallback BPE of at most `vocab_size` tokens; the same texts give the same bytes.

    Ids: <pad> 0, <s> 1, </s> 2, the 256 bytes, the texts' characters (the most frequent, at most
    half of the remaining room), then the merges.
    """
    texts = list(texts)
    if vocab_size < MIN_VOCAB:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: {_SMALLEST} are special tokens and bytes, "
            f"which every text needs; give at least {MIN_VOCAB}"
        )
    counts = collections.Counter(c for text in texts for c in text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    room = max(1, (vocab_size - _SMALLEST) // 2)
    # The library breaks ties of a limited alphabet by hash order, so the alphabet is cut here.
    alphabet = sorted(ranked[:room])
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*TRAINED_SPECIALS, *_BYTES],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    rules = json.loads(inner.to_str())
    del rules["added_tokens"][len(TRAINED_SPECIALS) :]  # the bytes are tokens as all others
    inner = tokenizers.Tokenizer.from_str(json.dumps(rules))
    return Tokenizer(FastModel(inner.to_str()), {"bos": BOS, "eos": EOS, "pad": PAD})


def load(folder: Path | str) -> Tokenizer:
    """Reads a folder with a tokenizer.json or a SentencePiece tokenizer.model, ours or a model's.

    Raises TokenizerError: no such folder, neither file in it, unreadable files, no eos.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(
            f"{folder}: no such folder; expected one with a {FAST} or a {SENTENCEPIECE} (set "
            "config.tokenizer.folder to a tokenizer's folder, or leave it empty to train one on "
            "the text)"
        )
    if not holds_tokenizer(folder):
        raise TokenizerError(
            f"{folder}: expected a {FAST} or a {SENTENCEPIECE}, found neither; copy the one of the "
            "decoder's model there"
        )
    config = read_config(folder)
    if (folder / FAST).is_file():
        model = FastModel.read(folder / FAST, config.added)
        _warn_of_disagreement(model, folder, config)
    else:
        model = SentencePieceModel.read(folder / SENTENCEPIECE, config.added)
    try:
        return Tokenizer(model, config.specials, config.chat_template, config.stop_ids)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error


def holds_tokenizer(folder: Path | str) -> bool:
    """True where `load` finds a file to read."""
    return any((Path(folder) / name).is_file() for name in (FAST, SENTENCEPIECE))


def _warn_of_disagreement(model: FastModel, folder: Path, config: TokenizerDescription) -> None:
    """A conversion of SentencePiece's model to tokenizer.json may have lost ids."""
    try:
        original = SentencePieceModel.read(folder / SENTENCEPIECE, config.added)
    except (OSError, TokenizerError):  # none, or Llama 3's, which is of another kind
        return
    different = [p for p in _PROBES if model.encode(p, False) != original.encode(p, False)]
    if different:
        logging.warning(
            "%s: %s is used, but %s gives other ids, as of %r. If the decoder was trained with "
            "SentencePiece (Llama 1 and 2, Vicuna), remove the %s",
            folder, FAST, SENTENCEPIECE, different[0], FAST,
        )  # fmt: skip
