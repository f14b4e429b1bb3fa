"""What stands beside a tokenizer in a Hugging Face folder: special and added tokens, the template.

tokenizer_config.json comes before special_tokens_map.json, as in transformers; added_tokens.json is
what older folders have instead of `added_tokens_decoder`.
"""

import dataclasses
import json
import os
from pathlib import Path

FAST, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE = "chat_template.jinja"


class TokenizerError(ValueError):
    """A folder that holds no usable tokenizer, or a size that none can have; says what to do."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token beside the model's own. special: a text that spells it does not get its id."""

    id: int
    special: bool
    lstrip: bool = False  # takes the whitespace before it along, in a text
    rstrip: bool = False


@dataclasses.dataclass(frozen=True)
class Beside:
    """specials: the tokens named "bos", "eos" and "pad", or None. added: by their text."""

    specials: dict[str, str | None]
    added: dict[str, AddedToken]
    chat_template: str | None


def read_beside(folder: Path) -> Beside:
    """Reads a folder's JSON files; raises TokenizerError for what cannot be read or be true."""
    config = read_json(folder / CONFIG)
    named = {**read_json(folder / MAP), **config}
    specials = {name: _content(named.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    others = [_content(named.get("unk_token"))]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        given = named.get(key) or []
        others += [_content(t) for t in (given.values() if isinstance(given, dict) else given)]
    special = {*specials.values(), *others} - {None}
    return Beside(specials, _added(folder, config, special), _template(folder, config))


def read_json(path: Path) -> dict:
    """A JSON file's object; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not JSON ({error}); write it again") from error
    if not isinstance(read, dict):
        raise TokenizerError(f"{path}: expected a JSON object, got a {type(read).__name__}")
    return read


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, and not where it says the same already."""
    if path.is_file() and path.read_bytes() == data:
        return
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _added(folder: Path, config: dict, special: set[str]) -> dict[str, AddedToken]:
    found: dict[str, AddedToken] = {}
    for token, number in read_json(folder / ADDED).items():
        found[token] = AddedToken(_whole(number, token, folder / ADDED), token in special)
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        where, given = folder / CONFIG, token if isinstance(token, dict) else {"content": token}
        if not _content(given):
            raise TokenizerError(f"{where}: added_tokens_decoder[{number!r}] has no content")
        found[given["content"]] = AddedToken(
            _whole(number, given["content"], where),
            bool(given.get("special")) or given["content"] in special,
            bool(given.get("lstrip")),
            bool(given.get("rstrip")),
        )
    owners: dict[int, str] = {}
    for token, entry in found.items():
        other = owners.setdefault(entry.id, token)
        if other != token:
            raise TokenizerError(
                f"{folder}: the added tokens {other!r} and {token!r} both have the id {entry.id}; "
                f"correct {ADDED} or {CONFIG}"
            )
    return found


def _whole(number: object, token: str, where: Path) -> int:
    try:
        value = int(str(number))
    except ValueError:
        value = -1
    if value < 0:
        raise TokenizerError(
            f"{where}: the added token {token!r} has the id {number!r}; expected 0 or more"
        )
    return value


def _template(folder: Path, config: dict) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):  # several by name, as transformers has them
        given = {each.get("name"): each.get("template") for each in given}.get("default")
    return given


def _content(token: str | dict | None) -> str | None:
    return token.get("content") if isinstance(token, dict) else token
