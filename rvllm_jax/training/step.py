"""One update as a pure function (state, batch) -> (state, metrics), under jit or pmap alike."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.models.norms import BatchNorm, keep_running
from rvllm_jax.sharding.constrain import constrain_params
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.system.atomic import make_folder, try_file
from rvllm_jax.system.page import size
from rvllm_jax.training.stages import StageSetup, frozen_norms
from rvllm_jax.training.state import TrainState
from rvllm_jax.types import Batch


def _micro_batches(batch: Batch, count: int) -> Batch:
    # Strided, so that every micro-batch holds sequences of every device.
    def cut(x):
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def _keep_if(ok: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _all_finite(arrays: Arrays) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in arrays.values()], bool))


def _make_gradient(
    model: FunctionalModel, running: Collection[str], accumulate: int, chunk: int, axis_name
):
    """(state, batch, tokens) -> (loss, gradients, statistics) of this device's part."""

    def loss_of(trainable, frozen, stats, batch, tokens):
        module = model.merge({**trainable, **frozen}, stats)
        module.set_attributes(BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        keep_running(module, running)
        hidden = module(batch, use_running=False)
        loss = token_loss_sum(module.decoder, hidden, batch.targets, batch.weights, chunk)
        return loss / tokens, model.read_stats(module)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def whole(state, batch, tokens):
        (loss, stats), grads = gradient(state.trainable, state.frozen, state.stats, batch, tokens)
        return loss, constrain_params(grads), stats

    def accumulated(state, batch, tokens):
        def body(carry, micro):
            grads, stats = carry
            (loss, stats), more = gradient(state.trainable, state.frozen, stats, micro, tokens)
            return (constrain_params(jax.tree.map(jnp.add, grads, more)), stats), loss

        carry = (jax.tree.map(jnp.zeros_like, state.trainable), state.stats)
        (grads, stats), losses = jax.lax.scan(body, carry, _micro_batches(batch, accumulate))
        return losses.sum(), grads, stats

    return accumulated if accumulate > 1 else whole


def make_step(
    model: FunctionalModel,
    tx: optax.GradientTransformation,
    *,
    running: Collection[str] = (),
    accumulate: int = 1,
    loss_chunk: int = 0,
    axis_name: str | None = None,
):
    """Builds the update of one stage.

    Loss is the sum of token losses over the global batch / the number of its answer tokens. With
    `accumulate` > 1 the gradient is summed over micro-batches; BatchNorm's statistics are then
    those of each micro-batch. The norms named in `running` use and keep their running ones.
    `axis_name` is pmap's axis, None under jit, where sums over a sharded batch are global already.
    Where loss, gradient or new statistics are not finite nothing of the state changes and
    metrics["finite"] is 0.

    Metrics: `loss`, `grad_norm` (before clipping), `tokens` (answer tokens), `finite`; float32[].
    """
    gradient = _make_gradient(model, running, accumulate, loss_chunk, axis_name)

    def total(x):
        return jax.lax.psum(x, axis_name) if axis_name else x

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        tokens = jnp.maximum(total(batch.weights.sum()), 1)
        loss, grads, stats = gradient(state, batch, tokens)
        loss, grads = total((loss, grads))
        norm = optax.tree.norm(grads)
        # A variance can overflow while the loss does not: it normalises to zero.
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite(stats)
        updates, opt = tx.update(grads, state.opt, state.trainable)
        new = (optax.apply_updates(state.trainable, updates), stats, opt)
        trainable, stats, opt = _keep_if(ok, new, (state.trainable, state.stats, state.opt))
        finite = ok.astype(jnp.float32)
        metrics = {"loss": loss, "grad_norm": norm, "tokens": tokens, "finite": finite}
        return TrainState(trainable, state.frozen, stats, opt), metrics

    return step


def compile_update(
    model: FunctionalModel,
    setup: StageSetup,
    layout: Layout,
    state: TrainState,
    batch: Any,
    loss_chunk: int,
) -> Callable:
    """(state, batch) -> (state, metrics), compiled for arrays that lie as these do."""
    step = make_step(
        model,
        setup.tx,
        running=frozen_norms(setup.stage, setup.labels),
        accumulate=setup.stage.accumulate,
        loss_chunk=loss_chunk,
        axis_name=layout.axis_name,
    )
    compiled = layout.compile(step, setup.tx, state, batch)
    HERE.gather(None, "compiled")  # as compiled_together says (hosts/sync.py)
    used = compiled.memory_analysis()
    if used is not None:
        logging.info(
            "stage %s: the compiled step takes %s of arguments and %s of temporaries a device",
            setup.stage.name,
            size(used.argument_size_in_bytes),
            size(used.temp_size_in_bytes),
        )
    return compiled


def keep_programs(folder: str) -> None:
    """Compiled programs are kept in `folder` and found there again; "" leaves JAX's settings.

    Raises WriteError: JAX would warn at each program, and keep none.
    """
    if folder:
        advice = "Name another --cache, or leave it out"
        try_file(make_folder(folder, advice=advice) / "trial", advice=advice)
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def make_loss(model: FunctionalModel, *, loss_chunk: int = 0):
    """(params, stats, batch) -> (sum of token losses, answer tokens), with running statistics."""

    def loss(params: Arrays, stats: Arrays, batch: Batch) -> tuple[jax.Array, jax.Array]:
        module = model.merge(params, stats)
        hidden = module(batch, use_running=True)
        total = token_loss_sum(module.decoder, hidden, batch.targets, batch.weights, loss_chunk)
        return total, batch.weights.sum()

    return loss
