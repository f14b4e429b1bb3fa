"""How benchmarks are asked."""

import dataclasses

from rvllm_jax.data.batches.clips import VIEWS
from rvllm_jax.evaluation.answering import FUSIONS, LOCK_STEP
from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.evaluation.asked_groups import MOST_TOGETHER


@dataclasses.dataclass(frozen=True)
class Options:
    """How a benchmark is asked; all of it is recorded.

    split: of the prepared ones; "": the only one. clips: test clips a video, a key of clips.VIEWS.
    fusion: of several clips, one of answering.FUSIONS. max_new: tokens an answer; 0: as the model's
    recipe says. videos: clips that are encoded at once; 0: the recipe's. together: the most
    questions behind one copy of a video's prefix. controls: questions asked again under each
    control, drawn by `seed`; 0: none. allow_partial: accept fewer questions than are published.
    fsdp, tensor: devices that each array is split over; the others share the clips.
    """

    split: str = ""
    clips: str = "1x1"
    fusion: str = LOCK_STEP
    max_new: int = 0
    videos: int = 0
    together: int = MOST_TOGETHER
    controls: int = 500
    seed: int = 0
    allow_partial: bool = False
    fsdp: int = 1
    tensor: int = 1

    def check(self) -> None:
        """Raises EvaluationError."""
        for name, values in (("clips", tuple(VIEWS)), ("fusion", FUSIONS)):
            if getattr(self, name) not in values:
                raise EvaluationError(
                    f"--{name}={getattr(self, name)}: expected one of {', '.join(values)}"
                )
        if (
            min(self.max_new, self.videos, self.controls, self.seed) < 0
            or min(self.together, self.fsdp, self.tensor) < 1
        ):
            raise EvaluationError(
                f"--max_new={self.max_new} --videos={self.videos} --together={self.together} "
                f"--controls={self.controls} --seed={self.seed} --fsdp={self.fsdp} "
                f"--tensor={self.tensor}: expected no number below 0, and --together, --fsdp and "
                "--tensor of at least 1"
            )
