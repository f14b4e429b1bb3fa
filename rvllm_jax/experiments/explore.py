"""What a model makes of a clip's frames: their features, and where the answer's tokens look.

A plain path, to be read and trusted rather than fast: weights of attention are computed in full,
[heads, L, L] a layer, which training and generation never hold.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.config.check import resolve
from rvllm_jax.config.schema import Stage
from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.data.batches import packing
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import Template
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.experiments.train import Experiment
from rvllm_jax.models.attention import TokenPositions, make_mask
from rvllm_jax.models.llama import Attention, Llama, rope_angles, rotate
from rvllm_jax.models.video_llm import VideoLLM, normalise
from rvllm_jax.training.stages import label_parameters
from rvllm_jax.training.workdir import claim, with_kept_decoder
from rvllm_jax.types import NO_SLOT, VisualLayout


class Looks(NamedTuple):
    """Where the tokens of one answer look; A tokens, the one that ends it included.

    Row a is what the token a was chosen by: the attention of the place before it.
    """

    pieces: list[str]  # A texts, as the vocabulary writes them
    weights: np.ndarray  # float32[layers, heads, A, L], over the whole row; each sums to 1
    frames: np.ndarray  # float32[layers, heads, A, T], the part on the tokens of each frame


def train(config: Mapping[str, Any], workdir: str | Path) -> Experiment:
    """Trains what is left to train of `config` in `workdir`, as the command does, and asks nothing.

    config: the keys of configs/joint.py as plain values (`ConfigDict.to_dict`). A model trained
    earlier in `workdir` with other values is refused, as WorkdirError.
    """
    recipe = resolve(with_kept_decoder(config, Path(workdir)))
    claim(Path(workdir), dict(config))
    experiment = Experiment.open(recipe, Path(workdir))
    experiment.train()
    return experiment


def trained_parts(stages: Iterable[Stage], params: Mapping[str, Any]) -> str:
    """What each stage's table trains, a line each: parameters by optimizer, and those frozen."""
    lines = []
    for stage in stages:
        counts: dict[str, int] = {}
        for path, label in label_parameters(stage, params).items():
            counts[label] = counts.get(label, 0) + params[path].size
        shown = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.items()))
        lines.append(f"{stage.name}: {shown}")
    return "\n".join(lines)


def frame_features(module: VideoLLM, frames: np.ndarray) -> np.ndarray:
    """The encoder's features of uint8[T, H, W, 3] frames, averaged over each: float32[T, E].

    BatchNorm uses its running statistics, so that no frame changes the features of another.
    """
    return np.asarray(_features(*nnx.split(module), frames))


def similarity(features: np.ndarray) -> np.ndarray:
    """Cosines between the rows of float[T, E], after their mean is taken off: float32[T, T].

    All frames of a clip share most of their features; without the mean every cosine is near 1.
    Rows equal to the mean have the cosine 0 with all.
    """
    own = features - features.mean(0, keepdims=True)
    length = np.linalg.norm(own, axis=1, keepdims=True)
    own = own / np.where(length > 1e-6 * np.abs(features).max(), length, np.inf)
    return (own @ own.T).astype(np.float32)


def answer_attention(
    module: VideoLLM,
    tokenizer: Tokenizer,
    template: Template,
    frames: np.ndarray,
    turn: Turn,
    frame_mask: np.ndarray | None = None,
) -> Looks:
    """Where each token of `turn.answer`, given as the answer to `turn.question`, looks.

    frames: uint8[T, H, W, 3], T as the model's layout has it; frame_mask: bool[T], True where a
    frame is real (None: all). Raises ChatError where question or answer is empty.
    """
    layout = module.layout
    mask = np.ones(len(frames), bool) if frame_mask is None else np.asarray(frame_mask)
    if frames.shape[0] != layout.frames or mask.shape != (layout.frames,):
        raise ValueError(
            f"the model reads clips of {layout.frames} frames, got {len(frames)} frames and a mask "
            f"of {list(mask.shape)}: pass a clip as Dataset.load gives it"
        )
    before, after = prompt.prefix_ids(tokenizer, template)
    head = packing.prefix(before, after, visual=layout.filled(int(mask.sum())))
    segment = prompt.segment_ids(tokenizer, template, (turn,))
    row = packing.pack_sequence(head, [segment], len(head) + len(segment[0]))
    fields = (row[name][None] for name in ("tokens", "slots", "positions", "segments"))
    weights = _weights(*nnx.split(module), frames[None], mask[None], *fields)
    weights = np.asarray(weights)[:, :, row["weights"] > 0]
    pieces = [tokenizer.piece(int(token)) for token in row["targets"][row["weights"] > 0]]
    own = frame_of_token(layout)[row["slots"]]
    own = np.where(row["slots"] == NO_SLOT, -1, own)
    of_frame = (own[:, None] == np.arange(layout.frames)).astype(np.float32)  # [L, T]
    return Looks(pieces, weights, weights @ of_frame)


def frame_of_token(layout: VisualLayout) -> np.ndarray:
    """The frame that each visual token is of, int32[V]; -1 where it is of all of them."""
    tokens = np.arange(layout.tokens)
    if layout.kind == "spatiotemporal":
        return np.where(tokens < layout.frames, tokens, -1).astype(np.int32)
    return (tokens // (layout.tokens // layout.frames)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _features(graph, arrays, frames):
    module = nnx.merge(graph, arrays)
    mask = jnp.ones(len(frames), bool)
    x_ThwE = module.encoder(normalise(frames, module.dtype), mask, use_running=True)
    return x_ThwE.astype(jnp.float32).mean((1, 2))


@functools.partial(jax.jit, static_argnums=0)
def _weights(graph, arrays, frames, mask, tokens, slots, positions, segments):
    module = nnx.merge(graph, arrays)
    x_BLD = module.embed(tokens, slots, module.encode(frames, mask, use_running=True))
    return decoder_attention(module.decoder, x_BLD, positions, segments)[:, 0]


def decoder_attention(
    decoder: Llama, x_BLD: jax.Array, positions_BL: jax.Array, segments_BL: jax.Array
) -> jax.Array:
    """The weights of every layer's attention, float32 `[layers, B, N, L, L]`, query by key.

    The arguments are those of `Llama.__call__`.
    """
    row = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)[None]
    mask_BLL = make_mask(TokenPositions(row, segments_BL), TokenPositions(row, segments_BL))
    rope = rope_angles(decoder.config, positions_BL)
    graph, params = nnx.split(decoder.layers)

    def body(x_BLD, params):
        block = nnx.merge(graph, params)
        weights = attention_weights(block.attention, block.norm1(x_BLD), rope, mask_BLL)
        return block(x_BLD, rope, mask_BLL, None)[0], weights

    return jax.lax.scan(body, x_BLD.astype(decoder.dtype), params)[1]


def attention_weights(attention: Attention, x_BLD: jax.Array, rope, mask_BLL) -> jax.Array:
    """The softmax of one layer, float32 `[B, N, L, L]`, of its normalised input."""
    heads = (*x_BLD.shape[:2], -1, attention.head_dim)
    q_BLNH = rotate(attention.q(x_BLD).reshape(heads), rope).astype(jnp.float32)
    k_BLKH = rotate(attention.k(x_BLD).reshape(heads), rope).astype(jnp.float32)
    k_BLNH = jnp.repeat(k_BLKH, q_BLNH.shape[2] // k_BLKH.shape[2], axis=2)
    scores_BNLL = jnp.einsum("bqnh,bknh->bnqk", q_BLNH, k_BLNH) * attention.head_dim**-0.5
    return jax.nn.softmax(jnp.where(mask_BLL[:, None], scores_BNLL, -jnp.inf), axis=-1)
