"""Rows whose stored frames cannot be read: counted, and refused when they are too many."""

import numpy as np

from rvllm_jax.data.pipeline import Dataset


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


def count_unreadable(
    dataset: Dataset, rows: np.ndarray, found: dict[str, int], *, most: int, stage: str
) -> None:
    """Adds the unreadable rows of a batch to `found`, those of the stage so far by video.

    rows: int[n], the numbers of their conversations. Raises `TrainingError` where more than `most`
    were found, with the files that hold their videos.
    """
    for row in rows.tolist():
        name = dataset.conversations[row].video
        found[name] = found.get(name, 0) + 1
    count = sum(found.values())
    if len(rows) and count > most:
        files = sorted({str(dataset.store.path(name)) for name in found})
        raise TrainingError(
            f"{count} rows of stage {stage} could not be read, more than config.max_unreadable="
            f"{most}. The videos are {', '.join(sorted(found))}, in the files {', '.join(files)}. "
            "Delete these files and start again: what they held is decoded anew. Or raise "
            "config.max_unreadable to go on without"
        )
