"""What a checkpoint was made of, so that it is continued on nothing else."""

import hashlib
from collections.abc import Mapping

from rvllm_jax.data.pipeline import Dataset


def fingerprint(dataset: Dataset) -> str:
    """Names the conversations of a dataset, their order, and the rows that they are packed into.

    Row k of an epoch is the same pairs wherever this is the same.
    """
    digest = hashlib.sha256()
    for conversation in dataset.conversations:
        digest.update(repr(conversation).encode())
    for part in (dataset.rows.clips, dataset.rows.starts, dataset.rows.segments):
        digest.update(part.tobytes())
    count = f"{len(dataset.conversations)} conversations in {len(dataset.rows)} rows"
    return f"{count}, {digest.hexdigest()[:16]}"


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each name whose fingerprints differ."""
    return [
        f"{name}: {saved.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
