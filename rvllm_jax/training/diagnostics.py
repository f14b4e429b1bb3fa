"""Sequences and questions whose frames cannot be read: counted, and refused when they are many."""

from collections.abc import Sequence

from absl import logging

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.system.errors import RvllmError


class TrainingError(RvllmError, RuntimeError):
    """Training cannot go on; the message says why and what to do."""


def count_unreadable(
    dataset: Dataset, numbers: Sequence[int], counts: dict[str, int], *, most: int, what: str
) -> None:
    """Adds what could not be read to `counts`, by video.

    numbers: of the examples. Raises `TrainingError` where there are more than `most`, with
    the files that hold their videos. what: what is counted, such as "sequences of stage visual".
    """
    for number in numbers:
        name = dataset.examples[number].video
        counts[name] = counts.get(name, 0) + 1
    count = sum(counts.values())
    if numbers and count > most:
        files = sorted({str(dataset.store.path(name)) for name in counts})
        raise TrainingError(
            f"{count} {what} could not be read, more than config.max_unreadable={most}. "
            f"The videos are {', '.join(sorted(counts))}, in the files {', '.join(files)}. "
            "Delete these files and start again (of a prepared folder, rvllm_jax.prepare before "
            "it): what they held is decoded anew. Or raise config.max_unreadable to go on without"
        )


def warn_of_unreadable(counts: dict[str, int], what: str) -> None:
    """Logs how many of `what` were not read, and of which videos, where there are any."""
    if counts:
        count, names = sum(counts.values()), ", ".join(sorted(counts))
        logging.warning("%s: %d could not be read, of the videos %s", what, count, names)
