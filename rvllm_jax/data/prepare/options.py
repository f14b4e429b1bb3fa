"""What a preparation is asked for, and what cannot be asked for."""

import dataclasses

from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.system.errors import RvllmError


class PreparationError(RvllmError, ValueError):
    """A preparation that cannot be started as it was asked for; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """How the frames are stored, and what is accepted of videos and annotations.

    Attributes:
        stride, short_side, encoding, frames_per_record: as those of `StoreOptions`.
        interval: frames of a file from one of a clip to the next.
        format: what the annotations must be, one of `annotations.formats.FORMATS`; None: any.
        no_benchmark: the annotations are nobody's benchmark, whatever their names look like.
        max_bad: the largest share of the videos, and of the rows, that may be unusable.
        allow_partial: accept fewer rows or videos than a benchmark has published; recorded.
        check: look at everything and report, but store no frame.
        thumbnails: how many videos the report shows.
        workers: processes; 0: this one alone.
    """

    stride: int = 6
    short_side: int = 256
    encoding: str = "jpeg"
    frames_per_record: int = 8
    interval: int = 6
    format: str | None = None
    no_benchmark: bool = False
    max_bad: float = 0.02
    allow_partial: bool = False
    check: bool = False
    thumbnails: int = 24
    workers: int = 0

    @property
    def store(self) -> StoreOptions:
        return StoreOptions(self.stride, self.short_side, self.encoding, self.frames_per_record)

    def validate(self) -> None:
        """Raises `PreparationError`, also where no clip could be cut from such a store."""
        numbers = {
            key: getattr(self, key)
            for key in ("stride", "short_side", "frames_per_record", "interval")
        }
        low = [f"--{key}={value}" for key, value in numbers.items() if value < 1]
        if low:
            raise PreparationError(f"{', '.join(low)}: expected whole numbers of at least 1")
        if self.encoding not in ("raw", "jpeg"):
            raise PreparationError(f"--encoding={self.encoding}: expected raw or jpeg")
        if self.interval % self.stride:
            raise PreparationError(
                f"--stride={self.stride} must divide --interval={self.interval}: only every "
                "stride-th frame is stored, and a clip takes every interval-th"
            )
        if not 0 <= self.max_bad <= 1 or self.thumbnails < 0:
            raise PreparationError(
                f"--max_bad={self.max_bad} --thumbnails={self.thumbnails}: expected a share from 0 "
                "to 1, and a number of at least 0"
            )
        if self.workers < 0:
            raise PreparationError(
                f"--workers={self.workers}: expected a number of processes, or 0 for this one alone"
            )
