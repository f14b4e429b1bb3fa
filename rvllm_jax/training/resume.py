"""What a run starts from (weights on disk) and continues on (the data of its checkpoint)."""

import re
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.lora import without_adapters
from rvllm_jax.system.fingerprint import SHORT, digest, recorded
from rvllm_jax.training.workdir import WorkdirError
from rvllm_jax.weights import load
from rvllm_jax.weights.open import Entry, open_weights
from rvllm_jax.weights.safetensors import WeightsError

_RENAMED = {"Example": "Conversation"}  # as it was called when runs recorded it first


def fingerprint(dataset: Dataset, *, files: bool = True) -> str:
    """Names the examples of a dataset, their order, the sequences that they are packed into, and
    the files that their frames come from.

    Sequence k of an epoch is the same wherever this is the same. files: False: without the files,
    as runs recorded it before d571663 of 2026-11-25.
    """
    parts = [recorded(example, _RENAMED) for example in dataset.examples]
    if files and dataset.options.input == "video":
        for video in sorted({example.video for example in dataset.examples}):
            entry = dataset.store.entries.get(video)  # none: set aside
            parts.append(repr((video, entry and entry.file_crc)))
    packed = (dataset.sequences.videos, dataset.sequences.starts, dataset.sequences.segments)
    named = digest([*parts, *(part.tobytes() for part in packed)], SHORT)
    return f"{len(dataset.examples)} conversations in {len(dataset.sequences)} rows, {named}"


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each name whose fingerprints differ."""
    return [
        f"{name}: {saved.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]


def check_made_of(
    workdir: Path,
    step: int,
    saved: Mapping[str, str],
    now: Mapping[str, str],
    datasets: Mapping[str, Dataset],
) -> None:
    """Raises WorkdirError where the data of the checkpoint of `step` is not that of `now`.

    datasets: of the names in `now` that are fingerprints of one. What an earlier version did not
    record is not known to differ: `saved` is empty before d7f21df of 2026-11-25.
    """
    if not saved:
        logging.warning(
            "%s: its checkpoint of step %d does not say what data it was made of, as it was made "
            "by an earlier version; continuing on that of this configuration", workdir, step
        )  # fmt: skip
        return
    before = {name: fingerprint(dataset, files=False) for name, dataset in datasets.items()}
    now = {name: saved[name] if saved.get(name) == before.get(name, "") else value
           for name, value in now.items()}  # fmt: skip
    if others := differences(saved, now):
        raise WorkdirError(
            f"{workdir}: its checkpoint of step {step} was made of other data, so that "
            "continuing would repeat some pairs and leave out others. Put annotations, videos "
            "and tokenizer back as they were, or name another --workdir.\n  " + "\n  ".join(others)
        )


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
