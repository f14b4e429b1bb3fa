"""Rows that nothing is learned from, as their frames cannot be read or their update is not finite:
counted, and refused when they are too many."""

from collections.abc import Sequence

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


def too_many_skipped(
    count: int, done: int, where: str, names: Sequence[str], *, key: str, latest: int | None
) -> TrainingError:
    """What ends a run after `count` updates in a row that were not finite.

    done: the last one's step; names: its clips; latest: the last checkpoint's step.
    """
    return TrainingError(
        f"{count} updates in a row were not finite, the last at step {done} ({where}) with the "
        f"clips {', '.join(names)}. Look at these clips, or lower {key} and name a new --workdir: "
        "what is trained belongs to its configuration. "
        + (
            f"The last checkpoint is that of step {latest}."
            if latest
            else "No checkpoint has been written yet."
        )
    )
