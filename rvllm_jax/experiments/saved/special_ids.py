"""The ids by which texts start and end: those of a model, and of the tokenizer beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.data.text.tokenizer_config import (
    GENERATION,
    TokenizerError,
    decoder_values,
    read_file,
    token_ids,
)
from rvllm_jax.system.atomic import dump_json, write_bytes
from rvllm_jax.weights.safetensors import WeightsError

DOES = {"bos_token_id": "begins texts", "eos_token_id": "ends answers"}


def read(config: Mapping[str, Any], size: int, file: Path) -> dict[str, Any]:
    """The ids in `config`, which is `file`'s, by which transformers starts, ends and fills texts.

    Raises WeightsError for what is no id, and for one that a vocabulary of `size` tokens does not
    hold. Llama's old files have pad_token_id=-1 for none, which counts as null.
    """
    ids = {}
    try:
        values = decoder_values(config, file)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = values.get(key)
            if value is not None and (key, value) != ("pad_token_id", -1):
                token_ids(values, key, file, size)
                ids[key] = value
    except TokenizerError as error:
        raise WeightsError(str(error)) from error
    return ids


def check_generation(folder: Path, size: int) -> None:
    """`read` of the generation_config.json in `folder`, if one is there; raises WeightsError."""
    try:
        values = read_file(folder / GENERATION)
    except TokenizerError as error:
        raise WeightsError(str(error)) from error
    read(values, size, folder / GENERATION)


def agree(
    decoder: Mapping[str, Any], tokenizer: Tokenizer, notes: list[str]
) -> dict[str, int | list[int] | None]:
    """The ids to write beside `tokenizer`: those of `decoder` (a config.json's) where it has them
    and the tokenizer's own is among them, else the tokenizer's, by which answers here end."""
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    for key, number in ids.items():
        theirs = decoder.get(key)
        if number is None or number in _listed(theirs):
            ids[key] = theirs
        elif theirs is not None:
            notes.append(
                f"warning: the tokenizer {DOES[key]} by id {number}, config.json says {theirs}: "
                f"{number} is written"
            )
    return ids


def write_generation(source: Path, out: Path, ids: Mapping[str, Any], notes: list[str]) -> None:
    """Copies the generation_config.json of folder `source`, with `ids` where it says otherwise.

    Byte for byte where it agrees. `ids` may be {}: nothing is known of a tokenizer.
    `check_generation` comes first.
    """
    content = source.read_bytes()
    values = json.loads(content)
    wrong = {
        key: number
        for key, number in ids.items()
        if number is not None and values.get(key) is not None
        if not set(_listed(number)) & set(_listed(values[key]))
    }
    if wrong:
        notes.append(f"{GENERATION}: {', '.join(f'{k}={v}' for k, v in wrong.items())} is written")
        content = dump_json(values | wrong).encode()
    write_bytes(out, content)


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]
