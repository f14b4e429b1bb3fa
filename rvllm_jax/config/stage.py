"""A training stage as data: what is trained, on what input, by which optimizer, for how long."""

import dataclasses
import math
import re
from collections.abc import Iterable

from rvllm_jax.models.lora import LoRA, is_adapter
from rvllm_jax.system.errors import RvllmError

FROZEN = "frozen"
INPUTS = ("video", "caption_in_slot")


class StageError(RvllmError, ValueError):
    """A stage that cannot be run as configured."""


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """`sgd`: L2 decay before momentum, as torch; `adamw`: no decay on norms and biases."""

    kind: str
    lr: float  # peak learning rate
    decay: float = 0.0  # weight decay
    momentum: float = 0.9  # sgd
    b1: float = 0.9  # adamw
    b2: float = 0.999  # adamw
    eps: float = 1e-8  # adamw
    moments: str = "float32"  # or "bfloat16": sgd's momentum and adamw's first moment


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the recipe. Either `steps` or `epochs` is positive; the other is 0."""

    name: str
    input: str  # "video", or "caption_in_slot": the caption's text in the video's place
    batch: int  # clips of the global batch
    table: tuple[tuple[str, str], ...]  # regex over parameter paths -> optimizer, or "frozen"
    optimizers: dict[str, OptimizerSpec]
    steps: int = 0
    epochs: int = 0
    accumulate: int = 1  # micro-batches of an update
    warmup: int = 0  # steps of linear warm-up
    schedule: str = "cosine"  # "cosine" to zero, or "constant"
    clip: float = 0.0  # largest global gradient norm over all that trains; 0: no clipping
    freeze_stats: bool = False  # BatchNorm uses and keeps its running statistics
    lora: LoRA | None = None  # of the decoder, adapters alone train

    def labels(self, paths: Iterable[str]) -> dict[str, str]:
        """The optimizer's name, or "frozen", of every parameter path: the first match wins.

        With `lora` the decoder is frozen but for its adapters; without it adapters are frozen.
        """
        rows = [(self._compiled(pattern), label) for pattern, label in self.table]
        labels, unmatched = {}, []
        for path in paths:
            for pattern, label in rows:
                if pattern.fullmatch(path):
                    labels[path] = label
                    break
            else:
                unmatched.append(path)
        if unmatched:
            raise StageError(
                f"stage {self.name}: no row of its table matches {len(unmatched)} parameters: "
                f"{', '.join(unmatched[:5])}{' ...' if len(unmatched) > 5 else ''}. Add a row, "
                f'such as (".*", "frozen"), to config.stages.{self.name}.table.'
            )
        unknown = sorted(set(labels.values()) - {*self.optimizers, FROZEN})
        if unknown:
            raise StageError(
                f"stage {self.name}: its table names {unknown}, which is neither 'frozen' nor in "
                f"config.stages.{self.name}.optimizers ({', '.join(self.optimizers) or 'empty'})"
            )
        labels |= {path: FROZEN for path in labels if self._is_held(path)}
        adapters = [path for path in labels if is_adapter(path)]
        if self.lora is not None and all(labels[path] == FROZEN for path in adapters):
            raise StageError(
                f"stage {self.name}: config.stages.{self.name}.lora adds {', '.join(adapters[:2])} "
                f"and the like, {len(adapters)} in all, and its table freezes them; give them an "
                'optimizer by a row such as (".*/lora/.*", "adamw") before the one that does'
            )
        if all(label == FROZEN for label in labels.values()):
            raise StageError(f"stage {self.name}: its table freezes every parameter; train some")
        return labels

    def _is_held(self, path: str) -> bool:
        return path.startswith("decoder/") and is_adapter(path) != (self.lora is not None)

    def ranges(self) -> list[tuple[str, float, float, float]]:
        """Its numbers that may be zero: (key, value, the least, what it must be below)."""
        where = f"stages.{self.name}"
        found = [
            (f"{where}.{key}", getattr(self, key), 0, math.inf)
            for key in ("steps", "epochs", "warmup", "clip")
        ]
        for name, spec in self.optimizers.items():
            for key in ("lr", "decay", "eps", "momentum", "b1", "b2"):
                below = 1 if key in ("momentum", "b1", "b2") else math.inf
                found.append((f"{where}.optimizers.{name}.{key}", getattr(spec, key), 0, below))
        return found

    def faults(self) -> list[str]:
        """What of its length and batch does not fit together, whatever the model and the data."""
        where, found = f"config.stages.{self.name}", []
        if (self.steps > 0) == (self.epochs > 0):
            found.append(f"{where}: set either steps or epochs, the other to 0")
        elif self.warmup >= self.steps > 0:
            found.append(
                f"{where}.warmup={self.warmup} is not below {where}.steps={self.steps}: the "
                "learning rate would never reach its peak; lower the one or raise the other"
            )
        if self.batch % self.accumulate:
            found.append(
                f"{where}.batch={self.batch} is not a multiple of accumulate={self.accumulate}"
            )
        return found

    def check(self, paths: Iterable[str], devices: int, instead: str = "") -> None:
        """Raises StageError where table and parameters, or batch and devices, do not fit.

        devices: how many the rows of a batch are split over. instead: what else could be set.
        """
        self.labels(paths)
        if self.batch % (devices * self.accumulate):
            raise StageError(
                f"config.stages.{self.name}.batch={self.batch} must be a multiple of {devices} "
                f"devices x accumulate={self.accumulate}: set it to such a multiple, or "
                f"config.mesh to fewer devices in data x fsdp{instead}"
            )

    def _compiled(self, pattern: str) -> re.Pattern:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise StageError(
                f"config.stages.{self.name}.table: {pattern!r} is not a regular expression "
                f"({error}); it is matched with whole parameter paths, such as "
                "'encoder/stem/conv/kernel'"
            ) from error

    def uses_running_stats(self, labels: dict[str, str]) -> bool:
        """Whether BatchNorm keeps to its running statistics: by key, or with all of it frozen."""
        encoder = {label for path, label in labels.items() if path.startswith("encoder/")}
        return self.freeze_stats or encoder <= {FROZEN}

    def micro_batch_note(self, paths: Iterable[str], norm: str) -> str:
        """What gradient accumulation does to BatchNorm; "" where it does nothing to it."""
        learned = norm == "batch" and self.input == "video" and self.accumulate > 1
        if not learned or self.uses_running_stats(self.labels(paths)):
            return ""
        return (
            f"stage {self.name}: BatchNorm's statistics are those of each micro-batch of "
            f"{self.batch // self.accumulate} clips, as config.stages.{self.name}.accumulate="
            f"{self.accumulate} cuts batch={self.batch}"
        )
