"""What a checkpoint was made of, so that it is continued on nothing else."""

from collections.abc import Mapping

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.system.fingerprint import SHORT, digest, recorded

_RENAMED = {"Example": "Conversation"}  # as it was called when runs recorded it first


def fingerprint(dataset: Dataset) -> str:
    """Names the examples of a dataset, their order, the rows that they are packed into, and
    the files that their frames come from.

    Row k of an epoch is the same wherever this is the same.
    """
    parts = [recorded(example, _RENAMED) for example in dataset.examples]
    if dataset.options.input == "video":
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
