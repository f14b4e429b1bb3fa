"""Rows that nothing is learned from, as their frames cannot be read or their update is not finite:
counted, and refused when they are too many."""

from collections.abc import Sequence

from absl import logging

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.system.errors import RvllmError


class TrainingError(RvllmError, RuntimeError):
    """Training cannot go on; the message says why and what to do."""


def count_unreadable(
    dataset: Dataset, numbers: Sequence[int], found: dict[str, int], *, most: int, what: str
) -> None:
    """Adds what could not be read to `found`, that of before by video.

    numbers: of the examples. Raises `TrainingError` where more than `most` were found, with
    the files that hold their videos. what: what is counted, such as "rows of stage visual".
    """
    for number in numbers:
        name = dataset.examples[number].video
        found[name] = found.get(name, 0) + 1
    count = sum(found.values())
    if numbers and count > most:
        files = sorted({str(dataset.store.path(name)) for name in found})
        raise TrainingError(
            f"{count} {what} could not be read, more than config.max_unreadable={most}. "
            f"The videos are {', '.join(sorted(found))}, in the files {', '.join(files)}. "
            "Delete these files and start again (of a prepared folder, rvllm_jax.prepare before "
            "it): what they held is decoded anew. Or raise config.max_unreadable to go on without"
        )


def warn_of_unreadable(found: dict[str, int], what: str) -> None:
    """Logs how many of `what` were not read, and of which videos, where there are any."""
    if found:
        count, names = sum(found.values()), ", ".join(sorted(found))
        logging.warning("%s: %d could not be read, of the videos %s", what, count, names)


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
