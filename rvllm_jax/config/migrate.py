"""The configuration of a run or of an exported model, without the folders that it started from.

What was trained names the folder of its decoder (config.model.decoder=FOLDER), which may be moved
or deleted afterwards: a run keeps the sizes in WORKDIR/decoder, an exported model in model.json.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.config.check import ConfigError, Recipe
from rvllm_jax.data.store.shards import write_atomically
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.training.checkpoint import is_bound
from rvllm_jax.weights.hf_config import llama_values


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; ConfigError where it cannot be read."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}; restore the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no JSON object; restore the file")
    return values


def of_run(workdir: Path) -> dict[str, Any]:
    """The configuration in config.json, its decoder's sizes those that the run keeps itself."""
    return with_kept_decoder(read_json(workdir / "config.json"), workdir)


def with_kept_decoder(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """`config`, its decoder's folder the one of `workdir`, once a checkpoint depends on it.

    Before, what `workdir` holds may be the rest of a start with another decoder.
    """
    config, kept = copy.deepcopy(dict(config)), workdir / "decoder"
    model = config.get("model")
    named = not isinstance(model, dict) or model.get("decoder") in DECODERS
    if not named and is_bound(workdir) and (kept / "config.json").is_file():
        config["model"]["decoder"] = str(kept)
    return config


def keep_decoder(recipe: Recipe, workdir: Path) -> None:
    """Writes the sizes of a decoder that is a folder to workdir/decoder, where they stay once a
    checkpoint depends on them."""
    path = workdir / "decoder" / "config.json"
    if not recipe.decoder_folder or (is_bound(workdir) and path.is_file()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    values = json.dumps(llama_values(recipe.llama, "float32"), indent=1)
    content = f"{values}\n".encode()
    if not path.is_file() or path.read_bytes() != content:  # several hosts at once: host 0 was here
        write_atomically(path, content)


def of_export(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration in the model.json of `folder`, which brings the decoder's sizes and the
    tokenizer itself. Raises ConfigError."""
    parts = [recipe.get(key) for key in ("model", "tokenizer")] if isinstance(recipe, dict) else [0]
    if not all(isinstance(part, dict) for part in parts):
        raise ConfigError(
            f"{folder / 'model.json'}: its recipe is {recipe!r:.80}; restore the file"
        )
    config = copy.deepcopy(recipe)
    config["model"] |= {"decoder": str(folder), "weights": str(folder), "random": ""}
    config["tokenizer"]["folder"] = str(folder)
    return config
