"""Where the tokens of an answer look: `/attention` in a chat.

A plain path, to be read and trusted rather than fast: a layer's weights of attention are computed
in full, [heads, L, L], which training and generation never hold.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.data.batches import packing
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import Template
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.generation import prompts
from rvllm_jax.generation.prompts import AnsweredTurn
from rvllm_jax.generation.unrolled import UnrolledLlama, unroll
from rvllm_jax.models.attention import TokenPositions, make_mask
from rvllm_jax.models.llama import Attention, rope_angles, rotate
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import NO_SLOT, VisualLayout


class AnswerAttention(NamedTuple):
    """Where the A tokens of one answer look, the one that ends it included.

    Row a is what token a was chosen by: the attention of the place before it, the mean over heads.
    """

    pieces: list[str]  # A texts, as the vocabulary writes them
    weights: np.ndarray  # float32[layers, A, L], over the whole sequence; each row sums to 1
    frames: np.ndarray  # float32[layers, A, T], the part on the tokens of each frame


def answer_attention(
    model: VideoLLM,
    tokenizer: Tokenizer,
    template: Template,
    frames: np.ndarray,
    frame_mask: np.ndarray,
    turns: Sequence[AnsweredTurn],
) -> AnswerAttention:
    """Of the answer of the last of `turns`, which follow each other behind a clip.

    frames: uint8[T, H, W, 3], T as the model's layout has it; frame_mask: bool[T], True where a
    frame is real. Raises PromptError where the question is empty, ValueError for other shapes.
    """
    layout, last = model.layout, turns[-1]
    if frames.shape[0] != layout.frames or frame_mask.shape != (layout.frames,):
        raise ValueError(
            f"the model reads clips of {layout.frames} frames, got {len(frames)} frames and a mask "
            f"of {list(frame_mask.shape)}: pass a clip as Dataset.load gives it"
        )
    before, after = prompt.prefix_ids(tokenizer, template)
    head = packing.prefix(before, after, visual=layout.filled(int(frame_mask.sum())))
    context = dict(prefix=len(head), context=model.decoder.config.context)
    asked = prompts.asked(tokenizer, template, last.question, turns[:-1], **context)
    answer = [*last.ids, prompt.end_id(tokenizer, template)]
    weights = np.arange(len(asked) + len(answer)) >= len(asked)
    length = prompts.round_up(len(head) + len(weights), prompts.MULTIPLE)
    row = packing.pack_sequence(head, [(np.array([*asked, *answer]), weights)], length)
    fields = (row[name][None] for name in ("tokens", "slots", "positions", "segments"))
    chosen = np.flatnonzero(row["weights"])  # the places that the answer's tokens were chosen at
    at = np.resize(chosen, prompts.round_up(len(chosen), prompts.MULTIPLE))
    attention = _attention(*nnx.split(unroll(model)), frames[None], frame_mask[None], *fields, at)
    attention = np.asarray(attention)[:, : len(chosen)]
    frame = np.where(row["slots"] == NO_SLOT, -1, frame_of_token(layout)[row["slots"]])
    of_frame = (frame[:, None] == np.arange(layout.frames)).astype(np.float32)  # [L, T]
    pieces = [tokenizer.piece(int(token)) for token in answer]
    return AnswerAttention(pieces, attention, attention @ of_frame)


def frame_of_token(layout: VisualLayout) -> np.ndarray:
    """The frame that each visual token is of, int32[V]; -1 where it is of all of them."""
    tokens = np.arange(layout.tokens)
    if layout.kind == "spatiotemporal":
        return np.where(tokens < layout.frames, tokens, -1).astype(np.int32)
    return (tokens // (layout.tokens // layout.frames)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _attention(graph, arrays, frames, mask, tokens, slots, positions, segments, at_A):
    model = nnx.merge(graph, arrays)
    x_BLD = model.embed(tokens, slots, model.encode(frames, mask, use_running=True))
    return decoder_attention(model.decoder, x_BLD, positions, segments, at_A)[:, 0]


def decoder_attention(
    decoder: UnrolledLlama,
    x_BLD: jax.Array,
    positions_BL: jax.Array,
    segments_BL: jax.Array,
    at_A: jax.Array,
) -> jax.Array:
    """The weights of every layer's attention, float32 `[layers, B, A, L]`, query by key, the mean
    over heads, of the queries at `at_A`. The other arguments are those of `Llama.__call__`.
    """
    row = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)[None]
    mask_BLL = make_mask(TokenPositions(row, segments_BL), TokenPositions(row, segments_BL))
    rope = rope_angles(decoder.config, positions_BL)
    x_BLD, layers = x_BLD.astype(decoder.dtype), []
    for block in decoder.layers:
        weights_BNLL = attention_weights(block.attention, block.norm1(x_BLD), rope, mask_BLL)
        layers.append(weights_BNLL[:, :, at_A].mean(axis=1))
        x_BLD, _ = block(x_BLD, rope, mask_BLL, None)
    return jnp.stack(layers)


def attention_weights(attention: Attention, x_BLD: jax.Array, rope, mask_BLL) -> jax.Array:
    """The softmax of one layer, float32 `[B, N, L, L]`, of its normalised input."""
    heads = (*x_BLD.shape[:2], -1, attention.head_dim)
    q_BLNH = rotate(attention.q(x_BLD).reshape(heads), rope).astype(jnp.float32)
    k_BLKH = rotate(attention.k(x_BLD).reshape(heads), rope).astype(jnp.float32)
    k_BLNH = jnp.repeat(k_BLKH, q_BLNH.shape[2] // k_BLKH.shape[2], axis=2)
    scores_BNLL = jnp.einsum("bqnh,bknh->bnqk", q_BLNH, k_BLNH) * attention.head_dim**-0.5
    return jax.nn.softmax(jnp.where(mask_BLL[:, None], scores_BNLL, -jnp.inf), axis=-1)
