"""What a run starts from: weights out of folders, and what of the model stays random."""

import re

from absl import logging

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.lora import without_adapters
from rvllm_jax.weights import load
from rvllm_jax.weights.open import Entry, open_weights
from rvllm_jax.weights.safetensors import WeightsError


def open_start(folders: str, random: str, model: FunctionalModel) -> dict[str, Entry]:
    """The arrays on disk that a run of `model` starts from, by path; nothing but headers is read.

    `folders` names folders or .safetensors files, separated by commas; "" none. Parameters that
    they lack must match the regex `random`, and are logged; adapters are always drawn. Raises
    WeightsError.
    """
    try:
        re.compile(random)
    except re.error as error:
        raise WeightsError(f"config.model.random={random!r} is no regex: {error}") from error
    names = [name.strip() for name in folders.split(",") if name.strip()]
    if not names:
        return {}
    sources = [open_weights(name) for name in names]
    for source in sources:
        if source.ignored:
            logging.info("%s: left out: %s", source.path, ", ".join(source.ignored))
    entries = load.combine(sources)
    targets = without_adapters(model.params) | model.stats
    try:
        drawn = load.check(entries, targets, random=random, where=folders)
    except WeightsError as error:
        raise WeightsError(
            f"{error}\nSizes are those of config.model.decoder and config.model.encoder; what may "
            f"be random is config.model.random={random!r}, a regex over these paths"
        ) from None
    if drawn:
        logging.info("drawn at random, as config.model.random says: %s", ", ".join(drawn))
    return entries
