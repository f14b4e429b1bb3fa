"""What a checkpoint was made of, so that it is continued on nothing else."""

import hashlib
from collections.abc import Mapping

from rvllm_jax.data.batches.dataset import Dataset


def fingerprint(dataset: Dataset) -> str:
    """Names the examples of a dataset, their order, the rows that they are packed into, and
    the files that their frames come from.

    Row k of an epoch is the same wherever this is the same.
    """
    digest = hashlib.sha256()
    for example in dataset.examples:
        # As the class was once called: checkpoints hold fingerprints that were made so.
        digest.update(repr(example).replace("Example", "Conversation", 1).encode())
    if dataset.options.input == "video":
        for video in sorted({example.video for example in dataset.examples}):
            entry = dataset.store.entries.get(video)  # none: set aside
            digest.update(repr((video, entry and entry.file_crc)).encode())
    for part in (dataset.sequences.videos, dataset.sequences.starts, dataset.sequences.segments):
        digest.update(part.tobytes())
    count = f"{len(dataset.examples)} conversations in {len(dataset.sequences)} rows"
    return f"{count}, {digest.hexdigest()[:16]}"


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each name whose fingerprints differ."""
    return [
        f"{name}: {saved.get(name, 'absent')} there, {now.get(name, 'absent')} now"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
