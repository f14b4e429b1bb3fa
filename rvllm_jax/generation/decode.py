"""Answers, token by token: a video is read once, its questions share what was read.

Static shapes throughout. Each row of the cache is one question, its slots are [question | answer];
those of a video's questions have its prefix in front of them, which is held once. (A conversation
has one row of [prefix | question | answer] instead.) Prefix and question are padded on the right.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.generation.clip_fusion import fuse
from rvllm_jax.generation.sampling import GREEDY, Sampling, next_token, seen_tokens
from rvllm_jax.generation.unrolled import UnrolledLlama, unroll
from rvllm_jax.models import kv_cache
from rvllm_jax.models.kv_cache import KVCache
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX, Questions

QUESTION = 1  # its segment: a row holds one question, so all may have the same number


class Answers(NamedTuple):
    """What the decoding loop carries.

    R = G * C * Q rows: Q questions about each of G videos, each in C views of it. The views of a
    video write one answer in lock-step (generation/clip_fusion.py), so there are A = G * Q answers.
    """

    step: jax.Array  # int32; answer tokens written
    tokens_AM: jax.Array  # int32; the answers, the first stop id where nothing was written
    ended_A: jax.Array  # bool; no more tokens for this answer
    seeds_A: jax.Array  # uint32
    seen_AV: jax.Array | None  # bool; tokens of prompt and answer, for the repetition penalty
    weights_GCQ: jax.Array  # float32; what each view's probabilities count
    position_R: jax.Array  # int32; RoPE position of the last token written
    cache: KVCache


def shardings(mesh: Mesh | None, kv_heads: int):
    """Where a cache and `Answers` lie that a program returns; None: where the model does."""
    if mesh is None:
        return None, None
    everywhere = NamedSharding(mesh, P())
    axis = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    heads = NamedSharding(mesh, P(None, None, axis))
    cache = KVCache(heads, heads, everywhere, everywhere)
    others = dict.fromkeys(Answers._fields, everywhere)
    return cache, Answers(**others | {"cache": cache})


def before_stop(ids: np.ndarray, stop_ids: tuple[int, ...]) -> np.ndarray:
    """The ids int32[M] of an answer that stand before the first of `stop_ids`."""
    ended = np.flatnonzero(np.isin(ids, stop_ids))
    return ids[: ended[0]] if len(ended) else ids


def generate(
    model: VideoLLM,
    questions: Questions,
    *,
    sampling: Sampling = GREEDY,
    max_new: int,
    stop_ids: tuple[int, ...],
    seed: int | jax.Array = 0,
    views: int = 1,
    cache_dtype=None,
    blind: bool = False,
) -> jax.Array:
    """Answers as int32[B / views, Q, max_new]. Pure: to be called under jit.

    An answer ends with the first of `stop_ids` that comes; the places behind it, and the rows that
    hold no question (id -1), are filled with `stop_ids[0]`. The loop ends when all have ended.

    Args:
        seed: of answer (g, q), int[B / views, Q]; of one number, answer a in that order gets
            seed + a. Answers with equal seeds and equal prompts are equal, in any batch.
        views: so many rows in succession are views of one video, asked the same questions. Their
            next-token probabilities are averaged, weighted by `questions.view_counts`, and all go
            on with the token chosen from the average. A view without a question (id -1: it could
            not be read) does not count.
        cache_dtype: of the keys and values, bfloat16 or float32; the decoder's own if None.
        blind: the control of `VideoLLM.encode`.

    Raises:
        ValueError: `max_new` below 1, no stop id, or rows that are no multiple of `views`.
    """
    B, Q, Lq = questions.question_tokens.shape
    _check(B, max_new, stop_ids, views)
    G = B // views
    model = unroll(model)
    prefix = read_prefix(model, questions, 0, blind=blind, cache_dtype=cache_dtype)
    asked_GCQ = (questions.ids >= 0).reshape(G, views, Q)
    weights_GCQ = asked_GCQ * jnp.asarray(questions.view_counts, jnp.float32).reshape(G, views, 1)
    seeds = jnp.asarray(seed, jnp.uint32)
    if seeds.ndim == 0:
        seeds = seeds + jnp.arange(G * Q, dtype=jnp.uint32)
    answers = Answers(
        step=jnp.int32(0),
        tokens_AM=jnp.full((G * Q, max_new), stop_ids[0], jnp.int32),
        ended_A=~jnp.any(asked_GCQ, axis=1).reshape(-1),
        seeds_A=jnp.broadcast_to(seeds.reshape(-1), G * Q),
        seen_AV=None if sampling.repetition_penalty == 1 else _seen(model, questions, views),
        weights_GCQ=weights_GCQ,
        position_R=jnp.repeat(prefix_ends(questions), Q) - 1,
        cache=kv_cache.behind(prefix, Q, Lq + max_new),
    )
    asked_RL = questions.question_tokens.reshape(B * Q, Lq)
    mask_RL = questions.question_mask.reshape(B * Q, Lq)
    answers = read_asked(model, answers, asked_RL, mask_RL, sampling, stop_ids)
    answers = advance(model, answers, max_new, sampling, stop_ids)
    return answers.tokens_AM.reshape(G, Q, max_new)


def _check(rows, max_new, stop_ids, views) -> None:
    if max_new < 1:
        raise ValueError(f"max_new={max_new}: an answer needs room for 1 token at least")
    if not stop_ids:
        raise ValueError("stop_ids is empty: give the id that ends an answer (-1 for none)")
    if views < 1 or rows % views:
        raise ValueError(f"views={views}: {rows} rows are no multiple of it")


def read_prefix(
    model: VideoLLM, questions: Questions, free: int, *, blind: bool = False, cache_dtype=None
) -> KVCache:
    """A cache of B rows that holds the prefixes and has `free` more slots."""
    B, P = questions.tokens.shape
    config = model.decoder.config
    visual_BVD = model.encode_if_any(questions, use_running=True, blind=blind)
    x_BPD = model.embed(questions.tokens, questions.slots, visual_BVD)
    cache = kv_cache.empty(
        config.layers,
        B,
        P + free,
        config.kv_heads,
        config.head_dim,
        cache_dtype or model.decoder.dtype,
        stacked=not isinstance(model.decoder, UnrolledLlama),
    )
    _, cache = model.decoder(x_BPD, questions.positions, questions.segments, cache)
    return cache


def prefix_ends(questions: Questions) -> jax.Array:
    """The position behind each prefix, int32[B]: a question's positions go on there, as in
    training (data/batches/packing.py)."""
    in_prefix_BP = questions.segments == PREFIX
    return jnp.max(jnp.where(in_prefix_BP, questions.positions + 1, 0), axis=1, initial=0)


def read_asked(
    model: VideoLLM,
    answers: Answers,
    asked_RL: jax.Array,
    mask_RL: jax.Array,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
) -> Answers:
    """Reads what is asked, int32[R, L] padded on the right, behind what the cache holds, and
    chooses the first token of each answer."""
    starts_R, L = answers.position_R + 1, asked_RL.shape[1]
    hidden_RLD, cache = model.decoder(
        model.decoder.embed(asked_RL),
        starts_R[:, None] + jnp.arange(L, dtype=jnp.int32),
        jnp.where(mask_RL, QUESTION, PADDING),
        answers.cache,
    )
    lengths_R = jnp.sum(mask_RL, axis=1, dtype=jnp.int32)
    last_R11 = jnp.maximum(lengths_R - 1, 0)[:, None, None]
    hidden_RD = jnp.take_along_axis(hidden_RLD, last_R11, axis=1)[:, 0]
    answers = answers._replace(cache=cache, position_R=starts_R + lengths_R - 1)
    return _chosen(model, answers, hidden_RD, sampling, stop_ids)


def advance(
    model: VideoLLM,
    answers: Answers,
    until: int | jax.Array,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
) -> Answers:
    """Goes on until `until` tokens of each answer are written, or all have ended."""
    return jax.lax.while_loop(
        lambda answers: (answers.step < until) & ~jnp.all(answers.ended_A),
        lambda answers: _next_token(model, answers, sampling, stop_ids),
        answers,
    )


def _next_token(model: VideoLLM, answers: Answers, sampling, stop_ids) -> Answers:
    G, C, Q = answers.weights_GCQ.shape
    last = jax.lax.dynamic_slice_in_dim(answers.tokens_AM, answers.step - 1, 1, axis=1)
    token_R1 = jnp.broadcast_to(last.reshape(G, 1, Q), (G, C, Q)).reshape(-1, 1)
    position_R = answers.position_R + 1
    hidden_R1D, cache = model.decoder(
        model.decoder.embed(token_R1),
        position_R[:, None],
        jnp.full_like(token_R1, QUESTION),
        answers.cache,
    )
    answers = answers._replace(cache=cache, position_R=position_R)
    return _chosen(model, answers, hidden_R1D[:, 0], sampling, stop_ids)


def _chosen(model: VideoLLM, answers: Answers, hidden_RD, sampling, stop_ids) -> Answers:
    """The answers with one more token, chosen from the logits of these hidden states."""
    logits_AV = fuse(model.decoder.logits(hidden_RD), answers.weights_GCQ)
    next_A = next_token(logits_AV, answers.seen_AV, answers.seeds_A, answers.step, sampling)
    next_A = jnp.where(answers.ended_A, stop_ids[0], next_A)
    seen_AV = answers.seen_AV
    if seen_AV is not None:
        seen_AV = seen_AV.at[jnp.arange(len(next_A)), next_A].set(True)
    return answers._replace(
        step=answers.step + 1,
        tokens_AM=jax.lax.dynamic_update_slice_in_dim(
            answers.tokens_AM, next_A[:, None], answers.step, axis=1
        ),
        ended_A=answers.ended_A | jnp.isin(next_A, jnp.asarray(stop_ids, jnp.int32)),
        seen_AV=seen_AV,
    )


def _seen(model: VideoLLM, questions: Questions, views: int) -> jax.Array:
    """The tokens of each answer's prompt, bool[A, V]; those of a video's views together."""
    B, Q, Lq = questions.question_tokens.shape
    vocab_size = model.decoder.config.vocab_size
    text_BP = (questions.segments == PREFIX) & (questions.slots == NO_SLOT)
    prefix_BV = seen_tokens(questions.tokens, text_BP, vocab_size)
    asked_RL, mask_RL = (
        x.reshape(B * Q, Lq) for x in (questions.question_tokens, questions.question_mask)
    )
    seen_RV = jnp.repeat(prefix_BV, Q, axis=0) | seen_tokens(asked_RL, mask_RL, vocab_size)
    return jnp.any(seen_RV.reshape(-1, views, Q, vocab_size), axis=1).reshape(-1, vocab_size)
