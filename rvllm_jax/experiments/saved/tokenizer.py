"""The tokenizer of a run: the working directory's own, the user's, or one trained on the text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.config.check import ConfigError
from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches.source import TrainingData
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.training.workdir import WorkdirError, is_bound


def find_tokenizer(recipe: Recipe, workdir: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of the working directory, or the user's; None where one is to be trained.

    Refused where the recipe's decoder or template does not go with it.
    What workdir/tokenizer holds counts once a checkpoint depends on it: before, it may be the rest
    of a start with other settings or other text.
    """
    folder = workdir / "tokenizer"
    if not (is_bound(workdir) and tokenizers.holds_tokenizer(folder)):
        folder = recipe.tokenizer.folder
    tokenizer = tokenizers.load(folder) if folder else None
    prompt.find_template(recipe.data.template, tokenizer)
    if tokenizer is not None:
        check_tokenizer(recipe, tokenizer, str(folder))
    return tokenizer


def open_tokenizer(recipe: Recipe, source: TrainingData, workdir: Path) -> tokenizers.Tokenizer:
    """`find_tokenizer`, or one trained on the training text; kept in workdir/tokenizer."""
    tokenizer = find_tokenizer(recipe, workdir)
    if tokenizer is None:
        template = prompt.find_template(recipe.data.template, None)
        texts = prompt.texts(template, source.splits["train"])
        tokenizer = tokenizers.train(texts, recipe.tokenizer.vocab_size)
        check_tokenizer(recipe, tokenizer, "config.tokenizer.folder=''")
    tokenizer.save(workdir / "tokenizer")
    return tokenizer


def check_tokenizer(recipe: Recipe, tokenizer: tokenizers.Tokenizer, folder: str) -> None:
    """Refuses a tokenizer whose ids the decoder's vocabulary does not hold, by ConfigError."""
    size = recipe.llama.vocab_size
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"the tokenizer at {folder} has {tokenizer.vocab_size} tokens, but config.model.decoder"
            f"={recipe.model.decoder} holds {size}; give the decoder's own tokenizer by "
            "config.tokenizer.folder"
        )
    if outside := [number for number in tokenizer.stop_ids if number >= size]:
        raise ConfigError(
            f"{folder}: special ids out of range: eos_token_id there lists {outside}, but "
            f"config.model.decoder={recipe.model.decoder} holds {size} tokens; correct "
            "generation_config.json or config.json"
        )


def check_trained_by(
    folder: Path, tokenizer: tokenizers.Tokenizer, step: int, meta: Mapping[str, Any]
) -> None:
    """Raises WorkdirError where the checkpoint of `step` was trained with another tokenizer.

    meta: the checkpoint's, which may not say so, as the best ones of earlier versions.
    """
    trained = meta.get("made_of", {}).get("tokenizer", tokenizer.fingerprint)
    if trained != tokenizer.fingerprint:
        raise WorkdirError(
            f"{folder}: is not the tokenizer that the checkpoint of step {step} was trained with "
            f"({trained} there, {tokenizer.fingerprint} now). Put its files back"
        )
