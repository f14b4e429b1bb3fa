"""A stage's update compiled, and what the compiler says that it takes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging

from rvllm_jax.config.schema import Stage
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.training.stages import uses_running_stats
from rvllm_jax.training.step import State, make_step


def keep_programs(folder: str) -> None:
    """Compiled programs are kept in `folder` and found there again; "" leaves JAX's settings."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compile_update(
    model: FunctionalModel,
    stage: Stage,
    labels: dict[str, str],
    tx: optax.GradientTransformation,
    layout: Layout,
    state: State,
    batch: Any,
    loss_chunk: int,
) -> Callable:
    """(state, batch) -> (state, metrics), compiled for arrays that lie as these do."""
    step = make_step(
        model,
        tx,
        use_running=uses_running_stats(stage, labels),
        accumulate=stage.accumulate,
        loss_chunk=loss_chunk,
        axis_name=layout.axis_name,
    )
    compiled = layout.compile(step, tx, state, batch)
    HERE.gather(None, "compiled")  # as hosts/compiling.py says
    used = compiled.memory_analysis()
    if used is not None:
        logging.info(
            "stage %s: %.1f million of %.1f million parameters train; the compiled step takes "
            "%.0f MB of arguments and %.0f MB of temporaries a device",
            stage.name,
            sum(x.size for x in jax.tree.leaves(layout.gather(state).trainable)) / 1e6,
            sum(math.prod(x.shape) for x in model.params.values()) / 1e6,
            used.argument_size_in_bytes / 1e6,
            used.temp_size_in_bytes / 1e6,
        )
    return compiled
