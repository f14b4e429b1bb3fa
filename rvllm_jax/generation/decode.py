"""Greedy answers: a video is read once, its questions share what was read.

Static shapes throughout. Each row of the cache is one question behind its video's prefix; the
slots are [prefix | question | answer], the first two padded on the right.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rvllm_jax.models import kv_cache
from rvllm_jax.models.kv_cache import KVCache
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import PADDING, PREFIX, Questions

QUESTION = 1  # its segment: a row holds one question, so all may have the same number


class Answers(NamedTuple):
    """What the decoding loop carries; R = B * Q rows."""

    step: jax.Array  # int32; answer tokens written
    tokens_RM: jax.Array  # int32; the answers, eos where nothing was written
    ended_R: jax.Array  # bool; no more tokens for this row
    position_R: jax.Array  # int32; RoPE position of the last token written
    cache: KVCache


def greedy(
    model: VideoLLM, questions: Questions, *, max_new: int, eos_id: int, blind: bool = False
) -> jax.Array:
    """The most likely next token, again and again, as int32[B, Q, max_new].

    An answer ends with `eos_id`, which also fills the places behind it and the rows that hold no
    question (id -1). `blind` is the control of `VideoLLM.encode`. Pure: to be called under jit.
    Raises ValueError when `max_new` is below 1.
    """
    if max_new < 1:
        raise ValueError(f"max_new={max_new}: an answer needs room for 1 token at least")
    B, Q, _ = questions.asked.shape
    cache = read_prefix(model, questions, questions.asked.shape[2] + max_new, blind=blind)
    first_R, position_R, cache = _ask(model, questions, cache)
    unasked_R = questions.ids.reshape(-1) < 0
    tokens_RM = jnp.full((B * Q, max_new), eos_id, jnp.int32)
    tokens_RM = tokens_RM.at[:, 0].set(jnp.where(unasked_R, eos_id, first_R))
    ended_R = unasked_R | (first_R == eos_id)
    state = Answers(jnp.int32(1), tokens_RM, ended_R, position_R, cache)
    state = jax.lax.while_loop(
        lambda state: (state.step < max_new) & ~jnp.all(state.ended_R),
        lambda state: _next_token(model, state, eos_id),
        state,
    )
    return state.tokens_RM.reshape(B, Q, max_new)


def read_prefix(
    model: VideoLLM, questions: Questions, free: int, *, blind: bool = False
) -> KVCache:
    """A cache of B rows that holds the prefixes and has `free` more slots."""
    B, P = questions.tokens.shape
    config = model.decoder.config
    visual_BVD = model.encode_if_any(questions, use_running=True, blind=blind)
    x_BPD = model.embed(questions.tokens, questions.slots, visual_BVD)
    cache = kv_cache.empty(
        config.layers, B, P + free, config.kv_heads, config.head_dim, model.decoder.dtype
    )
    _, cache = model.decoder(x_BPD, questions.positions, questions.segments, cache)
    return cache


def _ask(model, questions, prefix_cache):
    """Reads the questions -> first answer tokens, their positions, the cache of B * Q rows."""
    B, Q, Lq = questions.asked.shape
    mask_RL = questions.asked_mask.reshape(B * Q, Lq)
    # A question's positions go on where its prefix ends, as in training (data/packing.py).
    ends_B = jnp.max(
        jnp.where(questions.segments == PREFIX, questions.positions + 1, 0), axis=1, initial=0
    )
    starts_R = jnp.repeat(ends_B, Q)
    x_RLD = model.decoder.embed(questions.asked.reshape(B * Q, Lq))
    hidden_RLD, cache = model.decoder(
        x_RLD,
        starts_R[:, None] + jnp.arange(Lq, dtype=jnp.int32),
        jnp.where(mask_RL, QUESTION, PADDING),
        kv_cache.repeat(prefix_cache, Q),
    )
    lengths_R = jnp.sum(mask_RL, axis=1, dtype=jnp.int32)
    last_R11 = jnp.maximum(lengths_R - 1, 0)[:, None, None]
    hidden_RD = jnp.take_along_axis(hidden_RLD, last_R11, axis=1)[:, 0]
    return _most_likely(model, hidden_RD), starts_R + lengths_R, cache


def _next_token(model: VideoLLM, state: Answers, eos_id: int) -> Answers:
    token_R1 = jax.lax.dynamic_slice_in_dim(state.tokens_RM, state.step - 1, 1, axis=1)
    hidden_R1D, cache = model.decoder(
        model.decoder.embed(token_R1),
        state.position_R[:, None],
        jnp.full_like(token_R1, QUESTION),
        state.cache,
    )
    next_R = jnp.where(state.ended_R, eos_id, _most_likely(model, hidden_R1D[:, 0]))
    return Answers(
        step=state.step + 1,
        tokens_RM=jax.lax.dynamic_update_slice_in_dim(
            state.tokens_RM, next_R[:, None], state.step, axis=1
        ),
        ended_R=state.ended_R | (next_R == eos_id),
        position_R=state.position_R + 1,
        cache=cache,
    )


def _most_likely(model, hidden_RD):
    return jnp.argmax(model.decoder.logits(hidden_RD), axis=-1).astype(jnp.int32)
