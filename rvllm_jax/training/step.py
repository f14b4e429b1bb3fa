"""One update as a pure function (state, batch) -> (state, metrics), under jit or pmap alike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rvllm_jax.config.schema import FROZEN
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.models.norms import BatchNorm
from rvllm_jax.sharding.constrain import constrain_params
from rvllm_jax.types import Batch


class State(NamedTuple):
    """All that a stage carries from step to step; flat dictionaries by parameter path."""

    trainable: Arrays  # parameters with a gradient
    frozen: Arrays  # parameters without
    stats: Arrays  # BatchNorm's running mean and variance
    opt: Any  # Optax state over `trainable`


def split(params: Arrays, labels: dict[str, str]) -> tuple[Arrays, Arrays]:
    """Parameters -> (those that train, those that are frozen)."""
    trainable = {path: x for path, x in params.items() if labels[path] != FROZEN}
    frozen = {path: x for path, x in params.items() if labels[path] == FROZEN}
    return trainable, frozen


def _micro_batches(batch: Batch, count: int) -> Batch:
    # Strided, so that every micro-batch holds rows of every device.
    def cut(x):
        return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(cut, batch)


def _keep_if(ok: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _all_finite(arrays: Arrays) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in arrays.values()], bool))


def _make_gradient(
    model: FunctionalModel, use_running: bool, accumulate: int, chunk: int, axis_name
):
    """(state, batch, tokens) -> (loss, gradients, statistics) of this device's rows."""

    def loss_of(trainable, frozen, stats, batch, tokens):
        module = model.merge({**trainable, **frozen}, stats)
        module.set_attributes(BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        hidden = module(batch, use_running=use_running)
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
    use_running: bool,
    accumulate: int = 1,
    loss_chunk: int = 0,
    axis_name: str | None = None,
):
    """Builds the update of one stage.

    Loss is the sum of token losses over the global batch / the number of its answer tokens. With
    `accumulate` > 1 the gradient is summed over micro-batches; BatchNorm's statistics are then
    those of each micro-batch. `axis_name` is pmap's axis, None under jit, where sums over a
    sharded batch are global already. Where loss, gradient or new statistics are not finite nothing
    of the state changes and metrics["finite"] is 0.

    Metrics: `loss`, `grad_norm` (before clipping), `tokens` (answer tokens), `finite`; float32[].
    """
    gradient = _make_gradient(model, use_running, accumulate, loss_chunk, axis_name)

    def total(x):
        return jax.lax.psum(x, axis_name) if axis_name else x

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
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
        return State(trainable, state.frozen, stats, opt), metrics

    return step


def make_loss(model: FunctionalModel, *, loss_chunk: int = 0):
    """(params, stats, batch) -> (sum of token losses, answer tokens), with running statistics."""

    def loss(params: Arrays, stats: Arrays, batch: Batch) -> tuple[jax.Array, jax.Array]:
        module = model.merge(params, stats)
        hidden = module(batch, use_running=True)
        total = token_loss_sum(module.decoder, hidden, batch.targets, batch.weights, loss_chunk)
        return total, batch.weights.sum()

    return loss
