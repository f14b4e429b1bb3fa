"""A stage's table as one Optax transformation over the parameters that train."""

import re

import optax

from rvllm_jax.config.stage import FROZEN, OptimizerSpec, Stage

NO_DECAY = re.compile(r".*(bias|scale)")  # biases, and the scales of norms
UNDECAYED = "/undecayed"  # suffix of the label of an adamw group's norms and biases


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


def trainable_labels(stage: Stage, labels: dict[str, str]) -> dict[str, str]:
    """The label of each parameter that trains, norms and biases of adamw groups apart."""
    trainable = {path: label for path, label in labels.items() if label != FROZEN}
    for path, label in trainable.items():
        if stage.optimizers[label].kind == "adamw" and NO_DECAY.fullmatch(path):
            trainable[path] = label + UNDECAYED
    return trainable


def build(stage: Stage, labels: dict[str, str], steps: int) -> optax.GradientTransformation:
    """One global-norm clip over all that trains, then each parameter's own optimizer.

    Takes and returns flat dictionaries of the trainable parameters only: what is frozen has no
    gradient and no state. `steps` is the stage's length, for the learning-rate schedule.
    """
    groups = {}
    for name, spec in stage.optimizers.items():
        rate = learning_rate(spec, stage, steps)
        groups[name] = _transformation(spec, rate, spec.decay)
        if spec.kind == "adamw":
            groups[name + UNDECAYED] = _transformation(spec, rate, 0.0)
    transformation = optax.multi_transform(groups, trainable_labels(stage, labels))
    if stage.clip:
        return optax.chain(optax.clip_by_global_norm(stage.clip), transformation)
    return transformation
