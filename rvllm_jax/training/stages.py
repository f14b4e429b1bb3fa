"""The stages of training: a table of parameters -> labels -> one Optax transformation.

A stage says by regex over parameter paths which optimizer trains what, or that it is frozen. Going
from one stage to the next, such as from SGD on the visual encoder to AdamW on everything, is making
the next stage's labels and transformation from its table; nothing else of the loop knows of it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import optax

from rvllm_jax.config.schema import FROZEN, OptimizerSpec, Recipe, Stage
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.lora import is_adapter
from rvllm_jax.sharding import layouts
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.page import count

NO_DECAY = re.compile(r".*(bias|scale)")  # biases, and the scales of norms
UNDECAYED = "/undecayed"  # suffix of the label of an adamw group's norms and biases


T = TypeVar("T")


class StageError(RvllmError, ValueError):
    """A stage that cannot be run as configured."""


def label_parameters(stage: Stage, paths: Iterable[str]) -> dict[str, str]:
    """The optimizer's name, or "frozen", of every parameter path: the first match wins.

    With `stage.lora` the decoder is frozen but for its adapters; without it adapters are frozen.
    Raises StageError: a path that no row matches, a row that names no optimizer, adapters or
    everything frozen.
    """
    where = f"config.stages.{stage.name}"
    rows = [(_compile(pattern, where), label) for pattern, label in stage.table]
    labels, unmatched = {}, []
    for path in paths:
        label = next((label for pattern, label in rows if pattern.fullmatch(path)), None)
        if label is None:
            unmatched.append(path)
        else:
            labels[path] = label
    if unmatched:
        raise StageError(
            f"stage {stage.name}: no row of its table matches {len(unmatched)} parameters: "
            f"{', '.join(unmatched[:5])}{' ...' if len(unmatched) > 5 else ''}. Add a row, "
            f'such as (".*", "frozen"), to {where}.table.'
        )
    unknown = sorted(set(labels.values()) - {*stage.optimizers, FROZEN})
    if unknown:
        raise StageError(
            f"stage {stage.name}: its table names {unknown}, which is neither 'frozen' nor in "
            f"{where}.optimizers ({', '.join(stage.optimizers) or 'empty'})"
        )
    labels |= {path: FROZEN for path in labels if _is_frozen_by_lora(stage, path)}
    adapters = [path for path in labels if is_adapter(path)]
    if stage.lora is not None and all(labels[path] == FROZEN for path in adapters):
        raise StageError(
            f"stage {stage.name}: {where}.lora adds {', '.join(adapters[:2])} "
            f"and the like, {len(adapters)} in all, and its table freezes them; give them an "
            'optimizer by a row such as (".*/lora/.*", "adamw") before the one that does'
        )
    if all(label == FROZEN for label in labels.values()):
        raise StageError(f"stage {stage.name}: its table freezes every parameter; train some")
    return labels


def _compile(pattern: str, where: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise StageError(
            f"{where}.table: {pattern!r} is not a regular expression ({error}); it is matched with "
            "whole parameter paths, such as 'encoder/stem/conv/kernel'"
        ) from error


def _is_frozen_by_lora(stage: Stage, path: str) -> bool:
    return path.startswith("decoder/") and is_adapter(path) != (stage.lora is not None)


def check_stage(stage: Stage, paths: Iterable[str], devices: int, instead: str = "") -> None:
    """Raises StageError where table and parameters, or batch and devices, do not fit.

    devices: how many a batch is split over. instead: what else could be set.
    """
    label_parameters(stage, paths)
    if stage.batch % (devices * stage.accumulate):
        raise StageError(
            f"config.stages.{stage.name}.batch={stage.batch} must be a multiple of {devices} "
            f"devices x accumulate={stage.accumulate}: set it to such a multiple, or "
            f"config.mesh to fewer devices in data x fsdp{instead}"
        )


class StageSetup(NamedTuple):
    """A stage met with the model and its data: what trains what, and for how long."""

    stage: Stage
    labels: dict[str, str]  # by parameter path
    tx: optax.GradientTransformation  # over the parameters that train
    steps: int

    def learning_rates(self, update: int) -> dict[str, float]:
        """The rates with which a stage's update is made, as they are logged: "lr/OPTIMIZER"."""
        return {
            f"lr/{name}": float(learning_rate(spec, self.stage, self.steps)(update))
            for name, spec in self.stage.optimizers.items()
        }


def describe_trained(setup: StageSetup, params: Mapping[str, Any]) -> str:
    """How many of the parameters (arrays or shapes, by path) a stage trains, and of which parts."""
    trained = dict.fromkeys(("encoder", "projector", "decoder", "LoRA"), 0)
    for path, label in setup.labels.items():
        part = "LoRA" if is_adapter(path) else path.partition("/")[0]
        trained[part] += math.prod(params[path].shape) * (label != FROZEN)
    some, whole = sum(trained.values()), sum(math.prod(x.shape) for x in params.values())
    parts = ", ".join(f"{part} {count(number)}" for part, number in trained.items() if number)
    return f"stage {setup.stage.name} trains {count(some)} of {count(whole)} parameters: {parts}"


def prepare_stage(stage: Stage, paths: Iterable[str], steps: int) -> StageSetup:
    """The setup of a stage of that many updates; StageError as `label_parameters`."""
    labels = label_parameters(stage, paths)
    return StageSetup(stage, labels, make_optimizer(stage, labels, steps), steps)


def count_steps(stage: Stage, dataset: Dataset) -> int:
    """The length of a stage in updates; StageError where its warm-up takes all of them."""
    if stage.steps:
        return stage.steps
    steps = dataset.num_steps(stage.epochs, stage.batch)
    if stage.warmup >= steps:
        where = f"config.stages.{stage.name}"
        raise StageError(
            f"{where}.warmup={stage.warmup} is not below the {steps} updates that "
            f"{where}.epochs={stage.epochs} make of this data: the learning rate would never "
            "reach its peak; lower the one or raise the other"
        )
    return steps


def open_layout(recipe: Recipe, model: FunctionalModel) -> layouts.Layout:
    """As `build_layout`, for a run that also evaluates; StageError for that batch too."""
    layout = build_layout(recipe, model)
    if recipe.evaluation.batch % layout.batch_shards:
        raise StageError(
            f"config.evaluation.batch={recipe.evaluation.batch} must be a multiple of the "
            f"{layout.batch_shards} devices that a batch is split over"
        )
    return layout


def build_layout(recipe: Recipe, model: FunctionalModel) -> layouts.Layout:
    """The layout over the devices; MeshError or StageError where mesh, decoder, a stage's table or
    its batch do not fit them.
    """
    layout = layouts.make(recipe.parallel, recipe.mesh, recipe.llama.tensor_sizes)
    for_all(recipe.stages, lambda stage: check_stage(stage, model.params, layout.batch_shards))
    return layout


def for_all(stages: Iterable[Stage], make: Callable[[Stage], T]) -> list[T]:
    """What `make` gives for each stage; one StageError has the reasons of all that it refuses."""
    made, faults = [], []
    for stage in stages:
        try:
            made.append(make(stage))
        except StageError as error:
            faults.append(str(error))
    if faults:
        raise StageError("\n".join(faults))
    return made


def frozen_norms(stage: Stage, labels: dict[str, str]) -> set[str]:
    """The encoder's norms ("encoder/stem/norm") that keep to their running statistics: those whose
    scale and bias are frozen, with `stage.freeze_stats` all."""
    norms = _labels_by_norm(labels)
    return {norm for norm, kinds in norms.items() if stage.freeze_stats or kinds == {FROZEN}}


def _labels_by_norm(labels: dict[str, str]) -> dict[str, set[str]]:
    norms: dict[str, set[str]] = {}
    for path, label in labels.items():
        norm, _, leaf = path.rpartition("/")
        if path.startswith("encoder/") and leaf in ("scale", "bias"):
            norms.setdefault(norm, set()).add(label)
    return norms


def micro_batch_note(stage: Stage, paths: Iterable[str], norm: str) -> str:
    """What gradient accumulation does to BatchNorm; "" where it does nothing to it."""
    learned = norm == "batch" and stage.input == "video" and stage.accumulate > 1
    labels = label_parameters(stage, paths)
    if not learned or _labels_by_norm(labels).keys() == frozen_norms(stage, labels):
        return ""
    return (
        f"stage {stage.name}: BatchNorm's statistics are those of each micro-batch of "
        f"{stage.batch // stage.accumulate} clips, as config.stages.{stage.name}.accumulate="
        f"{stage.accumulate} cuts batch={stage.batch}"
    )


def learning_rate(spec: OptimizerSpec, stage: Stage, steps: int) -> optax.Schedule:
    """Learning rate by step of the stage: linear warm-up, then cosine to zero or constant."""
    warmup = optax.linear_schedule(0.0, spec.lr, max(stage.warmup, 1))
    if stage.schedule == "cosine":
        rest = optax.cosine_decay_schedule(spec.lr, max(steps - stage.warmup, 1))
    else:
        rest = optax.constant_schedule(spec.lr)
    return optax.join_schedules([warmup, rest], [stage.warmup]) if stage.warmup else rest


def _transformation(spec: OptimizerSpec, rate: optax.Schedule, decay: float):
    # Only the first moment: adamw's second changes by 1 - b2 = 0.001 of itself a step, which is
    # less than bfloat16 resolves, so that it would stay where it is.
    dtype = None if spec.moments == "float32" else spec.moments
    if spec.kind == "sgd":
        return optax.chain(
            optax.add_decayed_weights(decay),
            optax.trace(spec.momentum, accumulator_dtype=dtype),
            optax.scale_by_learning_rate(rate),
        )
    return optax.adamw(rate, spec.b1, spec.b2, spec.eps, weight_decay=decay, mu_dtype=dtype)


def _groups(stage: Stage, labels: dict[str, str]) -> dict[str, str]:
    """The label of each parameter that trains, norms and biases of adamw groups apart."""
    groups = {path: label for path, label in labels.items() if label != FROZEN}
    for path, label in groups.items():
        if stage.optimizers[label].kind == "adamw" and NO_DECAY.fullmatch(path):
            groups[path] = label + UNDECAYED
    return groups


def make_optimizer(
    stage: Stage, labels: dict[str, str], steps: int
) -> optax.GradientTransformation:
    """One global-norm clip over all that trains, then each parameter's own optimizer.

    Takes and returns flat dictionaries of the trainable parameters only: what is frozen has no
    gradient and no state. `steps` is the stage's length, for the learning-rate schedule.
    """
    optimizers = {}
    for name, spec in stage.optimizers.items():
        rate = learning_rate(spec, stage, steps)
        optimizers[name] = _transformation(spec, rate, spec.decay)
        if spec.kind == "adamw":
            optimizers[name + UNDECAYED] = _transformation(spec, rate, 0.0)
    transformation = optax.multi_transform(optimizers, _groups(stage, labels))
    if stage.clip:
        return optax.chain(optax.clip_by_global_norm(stage.clip), transformation)
    return transformation
