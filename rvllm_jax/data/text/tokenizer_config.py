"""The JSON files of a tokenizer's folder: special and added tokens, chat template, ends of answers.

tokenizer_config.json comes before special_tokens_map.json, as in transformers; added_tokens.json is
what older folders have instead of `added_tokens_decoder`.

Read by hand, not by transformers.AutoTokenizer: importing that takes 6 s of a processor (this room
0.4 s) at every start that opens a tokenizer, and what it makes of a folder with a SentencePiece
model gives other ids in 450 of 507 strings with runs of spaces.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.system.atomic import read_json
from rvllm_jax.system.errors import RvllmError

FAST, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"  # goes before config.json in transformers
TOKENIZER_FILES = (FAST, SENTENCEPIECE, CONFIG, MAP, ADDED, TEMPLATE)
_NAMED = ("bos", "eos", "pad", "unk")


class TokenizerError(RvllmError, ValueError):
    """A folder that holds no usable tokenizer, or a size that none can have; says what to do."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token beside the model's own. special: a text that spells it does not get its id."""

    id: int
    special: bool
    lstrip: bool = False  # takes the whitespace before it along, in a text
    rstrip: bool = False

    def described(self, text: str) -> dict[str, Any]:
        """The token of this text as the library and transformers write it, in the library's order:
        a tokenizer.json is known by its bytes."""
        flags = {"single_word": False, "lstrip": self.lstrip, "rstrip": self.rstrip}
        return {"content": text, **flags, "normalized": False, "special": self.special}


@dataclasses.dataclass(frozen=True)
class TokenizerDescription:
    """What the files name.

    specials: the tokens named "bos", "eos" and "pad", or None. added: by their text.
    chat_template: in Jinja. stop_ids: those that end an answer, as the model's own files list them.
    """

    specials: dict[str, str | None]
    added: dict[str, AddedToken]
    chat_template: str | None
    stop_ids: tuple[int, ...] = ()


def read_config(folder: Path) -> TokenizerDescription:
    """Reads a folder's JSON files; raises TokenizerError for what cannot be read or be true."""
    config, where = read_file(folder / CONFIG), folder / CONFIG
    named = {**read_file(folder / MAP), **config}
    specials = {n: _content(named.get(key := f"{n}_token"), where, key) for n in _NAMED}
    others = [specials.pop("unk")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        given = _value(named, key, where, dict | list, "a list of tokens") or []
        given = given.values() if isinstance(given, dict) else given
        others += [_content(token, where, key) for token in given]
    special = {*specials.values(), *others} - {None}
    added, template = _added(folder, config, special), _template(folder, config)
    return TokenizerDescription(specials, added, template, _stop_ids(folder))


def read_file(path: Path) -> dict[str, Any]:
    """A JSON file's object; {} where there is no such file."""
    return read_json(path, absent={}, advice="write it again", error=TokenizerError)


def decoder_values(
    config: Mapping[str, Any], where: Path, key: str = "text_config"
) -> dict[str, Any]:
    """The decoder's part of a config.json: a LLaVA's `text_config` goes before the top."""
    return {**config, **(_value(config, key, where) or {})}


def token_ids(values: Mapping[str, Any], key: str, where: Path, size: int = 0) -> tuple[int, ...]:
    """The ids of `key` in `values`, which are the file `where`'s; () where it is absent or null.

    size: tokens of the decoder's vocabulary; 0: not known. Raises TokenizerError for what is no id,
    or no list of ids where answers may end by several, and for an id outside the vocabulary.
    """
    given = values.get(key)
    if given is None:
        return ()
    several = key == "eos_token_id"
    ids = given if several and isinstance(given, list) else [given]
    kind = f"an id{' or a list of ids' * several}"
    if any(not isinstance(number, int) or isinstance(number, bool) for number in ids):
        wrong = f", expected {kind}"
    elif not all(0 <= number < (size or number + 1) for number in ids):
        expected = f"expected {kind} of 0 or more"
        if size:
            expected = f"as the decoder's vocabulary has {size} tokens (vocab_size)"
        wrong = f": special ids out of range, {expected}"
    else:
        return tuple(ids)
    raise TokenizerError(f"{where}: {key}={given!r}{wrong}; correct it there, or set it to null")


def _stop_ids(folder: Path) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, else of config.json, else of our model.json."""
    for name, part in ((GENERATION, ""), ("config.json", "text_config"), ("model.json", "decoder")):
        where = folder / name
        values = decoder_values(read_file(where), where, part)
        if ids := token_ids(values, "eos_token_id", where):
            return ids
    return ()


def _value(
    values: Mapping[str, Any], key: str, where: Path, kind: Any = dict, expected: str = "an object"
) -> Any:
    """The value of `key` in the file `where`, of this kind where it is not empty."""
    given = values.get(key)
    if given and not isinstance(given, kind):
        raise TokenizerError(f"{where}: {key}={given!r:.80}, expected {expected}")
    return given


def _added(folder: Path, config: dict, special: set[str]) -> dict[str, AddedToken]:
    where, older = folder / CONFIG, folder / ADDED
    listed = [(older, number, token) for token, number in read_file(older).items()]
    decoder = _value(config, "added_tokens_decoder", where) or {}
    listed += [(where, number, token) for number, token in decoder.items()]
    added: dict[str, AddedToken] = {}
    for file, number, token in listed:
        text = _content(token, file, "added_tokens_decoder")
        if not text:
            raise TokenizerError(f"{file}: the added token {number!r} has no content")
        if not str(number).isdecimal():
            raise TokenizerError(
                f"{file}: the added token {text!r} has the id {number!r}; expected 0 or more"
            )
        flags = token if isinstance(token, dict) else {}
        added[text] = AddedToken(
            int(str(number)),
            bool(flags.get("special")) or text in special,
            bool(flags.get("lstrip")),
            bool(flags.get("rstrip")),
        )
    owners: dict[int, str] = {}
    for token, entry in added.items():
        other = owners.setdefault(entry.id, token)
        if other != token:
            raise TokenizerError(
                f"{folder}: the added tokens {other!r} and {token!r} both have the id {entry.id}; "
                f"correct {ADDED} or {CONFIG}"
            )
    return added


def _template(folder: Path, config: dict) -> str | None:
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except ValueError as error:
            raise TokenizerError(f"{folder / TEMPLATE}: not UTF-8 ({error})") from error
    given = config.get("chat_template")
    if isinstance(given, list) and all(isinstance(each, dict) for each in given):
        given = {each.get("name"): each.get("template") for each in given}
    if isinstance(given, dict):  # several by name, as transformers has them
        given = given.get("default")
    if given is not None and not isinstance(given, str):
        raise TokenizerError(f"{folder / CONFIG}: chat_template={given!r}, expected a text")
    return given


def _content(token: object, where: Path, key: str) -> str | None:
    """The text of a token, which may be an object that describes it."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise TokenizerError(f"{where}: {key} has {token!r}, expected a token's text")
    return text
