"""What nothing is learned from: sequences whose frames cannot be read, updates that are not finite.

They are counted, and refused when they are too many.
"""

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
