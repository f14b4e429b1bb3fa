"""How an answer is made: the next token chosen from logits, greedy or at random.

The order is that of Hugging Face's `generate`: repetition penalty, temperature, top-k, top-p. All
functions are pure; a row's choice depends on its own logits and key alone, never on its neighbours.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rvllm_jax.system.errors import RvllmError


class SamplingError(RvllmError, ValueError):
    """A value of a generation config outside its range; says what is expected."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen; hashable, to be a static argument of a compiled function.

    temperature: divides the logits; 0 takes the likeliest token, whatever top_k and top_p say.
    top_k: only the k likeliest tokens (ties with the last of them stay); 0 leaves all.
    top_p: only the likeliest tokens that together reach this probability; 1 leaves all.
    repetition_penalty: logits of tokens that the prompt or the answer holds already are divided by
        it where positive, multiplied where negative (Keskar et al. 2019); 1 changes nothing.
    Raises SamplingError for values outside these ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        ranges = {
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or a number above"),
            "top_k": (self.top_k == int(self.top_k) >= 0, "0 (all) or a number of tokens"),
            "top_p": (0 < self.top_p <= 1, "a probability above 0, at most 1 (all)"),
            "repetition_penalty": (
                0 < self.repetition_penalty < float("inf"),
                "a number above 0; 1 is none",
            ),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                raise SamplingError(f"{name}={getattr(self, name)}: expected {expected}")


GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How an answer is made.

    sampling: how its tokens are chosen. max_new: how many at most. stop: texts that end it, and are
    no part of it. seed: of the sampling; question number n of several gets seed + n.
    Raises SamplingError for a `max_new` below 1 and for an empty text in `stop`.
    """

    sampling: Sampling = GREEDY
    max_new: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if self.max_new < 1:
            raise SamplingError(
                f"max_new={self.max_new}: an answer needs room for 1 token at least"
            )
        if not all(self.stop):
            raise SamplingError("a stop string is empty: it would end every answer at once")


def seen_tokens(tokens_RL: jax.Array, mask_RL: jax.Array, vocab_size: int) -> jax.Array:
    """Which tokens of the vocabulary each row holds where the mask is True: `bool[R, V]`."""
    rows_R1 = jnp.arange(tokens_RL.shape[0])[:, None]
    counted = jnp.where(mask_RL, tokens_RL, vocab_size)  # out of range: dropped
    return jnp.zeros((tokens_RL.shape[0], vocab_size), bool).at[rows_R1, counted].set(True)


def penalise(logits_RV: jax.Array, seen_RV: jax.Array, penalty: float) -> jax.Array:
    """The logits with those of seen tokens lowered (a penalty below 1 raises them)."""
    lowered_RV = jnp.where(logits_RV < 0, logits_RV * penalty, logits_RV / penalty)
    return jnp.where(seen_RV, lowered_RV, logits_RV)


def keep_top_k(logits_RV: jax.Array, k: int) -> jax.Array:
    """-inf below the k-th largest logit of each row."""
    kth_R1 = jax.lax.top_k(logits_RV, min(k, logits_RV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_RV < kth_R1, -jnp.inf, logits_RV)


def keep_top_p(logits_RV: jax.Array, p: float) -> jax.Array:
    """-inf but for the smallest set of the likeliest tokens that reaches probability p.

    The likeliest one always stays. Of equal logits, those later in the vocabulary go in first.
    """
    order_RV = jnp.argsort(logits_RV, axis=-1)  # rising and stable, as in Hugging Face's
    sorted_RV = jnp.take_along_axis(logits_RV, order_RV, axis=-1)
    below_RV = jnp.cumsum(jax.nn.softmax(sorted_RV, axis=-1), axis=-1)
    drop_RV = (below_RV <= 1 - p).at[:, -1].set(False)
    rows_R1 = jnp.arange(logits_RV.shape[0])[:, None]
    drop_RV = jnp.zeros_like(drop_RV).at[rows_R1, order_RV].set(drop_RV)
    return jnp.where(drop_RV, -jnp.inf, logits_RV)


def processed(logits_RV: jax.Array, seen_RV: jax.Array | None, sampling: Sampling) -> jax.Array:
    """The logits whose softmax is sampled from; at temperature 0, whose largest one is taken.

    seen_RV: of `seen_tokens`; None is enough where there is no repetition penalty.
    """
    if sampling.repetition_penalty != 1:
        logits_RV = penalise(logits_RV, seen_RV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits_RV
    logits_RV = logits_RV / sampling.temperature
    if sampling.top_k:
        logits_RV = keep_top_k(logits_RV, sampling.top_k)
    if sampling.top_p < 1:
        logits_RV = keep_top_p(logits_RV, sampling.top_p)
    return logits_RV


def next_token(
    logits_RV: jax.Array,
    seen_RV: jax.Array | None,
    seeds_R: jax.Array,
    step: jax.Array,
    sampling: Sampling,
) -> jax.Array:
    """One token a row, `int32[R]`: a pure function of the row's logits, its seed and the step."""
    logits_RV = processed(logits_RV, seen_RV, sampling)
    if sampling.temperature == 0:
        return jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)

    def draw(seed, logits_V):
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), step), logits_V)

    return jax.vmap(draw)(seeds_R, logits_RV).astype(jnp.int32)
