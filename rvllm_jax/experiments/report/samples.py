"""Which clips of a split are shown in the report, with a question and its answer each."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rvllm_jax.data.batches.dataset import READABLE, Dataset
from rvllm_jax.generation.engine import Prediction

SAMPLES_A_SPLIT = 4  # questions on the sheet of frames


@dataclasses.dataclass(frozen=True)
class Sample:
    """One clip with one question and what the model answered.

    Attributes:
      frames: uint8[T, H, W, 3], T >= 1.
      question: the question's text.
      reference: the right answer.
      answer: the model's.
      split: "train", "test", ...
      kind: the question type, or "".
    """

    frames: np.ndarray
    question: str
    reference: str
    answer: str
    split: str
    kind: str = ""

    def __post_init__(self):
        f = self.frames
        if f.ndim != 4 or f.shape[-1] != 3 or f.dtype != np.uint8 or 0 in f.shape:
            raise ValueError(f"frames: expected uint8[T, H, W, 3], got {f.dtype}{list(f.shape)}")


def answered_samples(
    dataset: Dataset, predictions: Sequence[Prediction], split: str
) -> list[Sample]:
    """The first clips of a split that can be read, a question each, going round the types."""
    videos = {number: video for video, number in enumerate(dataset.first_examples)}
    by_example: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        example, _ = dataset.questions[prediction.question]
        if example in videos and not prediction.failed:
            by_example.setdefault(example, []).append(prediction)
    samples: list[Sample] = []
    for number, answered in by_example.items():
        if len(samples) == SAMPLES_A_SPLIT:
            break
        row = dataset.load(videos[number], (), None)
        if row.errors != READABLE:  # its test clips were, the one in the centre is not
            continue
        prediction = answered[len(samples) % len(answered)]
        turn = dataset.turns[prediction.question]
        samples.append(
            Sample(
                frames=row.frames[row.frame_mask],
                question=turn.question,
                reference=turn.answer,
                answer=prediction.text,
                split=split,
                kind=turn.kind,
            )
        )
    return samples
