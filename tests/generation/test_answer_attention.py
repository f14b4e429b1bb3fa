"""The attention of an answer's tokens, held against the model's own forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.data.text import prompt
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.generation.answer_attention import (
    answer_attention,
    attention_weights,
    decoder_attention,
)
from rvllm_jax.generation.prompts import AnsweredTurn, PromptError
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.models.attention import TokenPositions, make_mask
from rvllm_jax.models.llama import rope_angles
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import PREFIX, VisualLayout

QUESTION, ANSWER = "what moves?", " a red ball"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(["what moves? a red ball", "which way does it go?"] * 9, 300)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def make(kind="grid", grid=2):
    llama = LlamaConfig(300, 16, 2, 4, 2, 8, 24, context=64)
    return VideoLLM(
        ResNetConfig((1,), False, (8,), stem="small"),
        llama,
        VisualLayout(kind, frames=3, grid=grid),
        rngs=nnx.Rngs(0),
    )


@pytest.fixture(scope="module")
def module():
    return make()


def test_the_weights_of_a_layer_give_its_own_output(module):
    """Two segments behind a prefix, so that the mask matters too."""
    key = jax.random.key(1)
    graph, stacked = nnx.split(module.decoder.layers)
    first = nnx.merge(graph, jax.tree.map(lambda x: x[0], stacked)).attention
    x = jax.random.normal(key, (2, 7, 16)) * 3
    segments = jnp.array([[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, -1]])
    row = jnp.arange(7)[None]
    mask = make_mask(TokenPositions(row, segments), TokenPositions(row, segments))
    rope = rope_angles(module.decoder.config, jnp.broadcast_to(row, (2, 7)))
    weights = attention_weights(first, x, rope, mask)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights[0, :, 5:, 3:5] == 0).all()  # the second question does not see the first
    values = jnp.repeat(first.v(x).reshape(2, 7, 2, 8), 2, axis=2)
    out = first.o(jnp.einsum("bnqk,bknh->bqnh", weights, values).reshape(2, 7, 32))
    np.testing.assert_allclose(out, first(x, rope, mask, None)[0], rtol=1e-4, atol=1e-5)


def test_later_layers_read_what_the_decoder_itself_hands_them(module):
    """The second layer reads what the first one, `DecoderLayer` itself, hands it."""
    x = jax.random.normal(jax.random.key(2), (1, 5, 16))
    positions, segments = jnp.arange(5)[None], jnp.full((1, 5), PREFIX)
    at, decoder = jnp.array([1, 4]), unroll(module).decoder
    weights = decoder_attention(decoder, x, positions, segments, at)
    graph, stacked = nnx.split(module.decoder.layers)
    one, two = (nnx.merge(graph, jax.tree.map(lambda s, i=i: s[i], stacked)) for i in range(2))
    row = TokenPositions(jnp.arange(5)[None], segments)
    mask, rope = make_mask(row, row), rope_angles(module.decoder.config, positions)
    after = two.norm1(one(x, rope, mask, None)[0])
    wanted = attention_weights(two.attention, after, rope, mask).mean(1)[:, at]
    np.testing.assert_allclose(weights[1], wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(weights[1] - weights[0]).max() > 1e-3


@pytest.mark.parametrize(("kind", "tokens_of_no_frame"), [("grid", 0), ("spatiotemporal", 4)])
def test_the_part_on_frames_is_that_of_their_tokens(kind, tokens_of_no_frame, tokenizer, frames):
    model, template = make(kind), TEMPLATES["short"]
    ids = tokenizer.encode(ANSWER)
    turns = [AnsweredTurn(QUESTION, ids)]
    attention = answer_attention(model, tokenizer, template, frames, np.ones(3, bool), turns)
    assert attention.pieces == [tokenizer.piece(i) for i in [*ids, tokenizer.eos_id]]
    assert attention.weights.shape[:2] == attention.frames.shape[:2] == (2, len(ids) + 1)
    np.testing.assert_allclose(attention.weights.sum(-1), 1, rtol=1e-5)
    before = len(prompt.prefix_ids(tokenizer, template)[0])
    visual = model.layout.tokens - tokens_of_no_frame
    on_tokens = attention.weights[..., before : before + visual]
    np.testing.assert_allclose(attention.frames.sum(-1), on_tokens.sum(-1), rtol=1e-5)
    each = visual // 3
    second = on_tokens[..., each : 2 * each].sum(-1)
    np.testing.assert_allclose(attention.frames[..., 1], second, 1e-5)


def test_a_later_turn_s_answer_sees_the_turns_before_it(module, tokenizer, frames):
    """With the first turn as part of its prompt, and nothing behind itself."""
    parts = module, tokenizer, TEMPLATES["short"], frames, np.ones(3, bool)
    ids = tokenizer.encode(ANSWER)
    first, second = AnsweredTurn(QUESTION, ids), AnsweredTurn("which way?", ids)
    alone, both = answer_attention(*parts, [second]), answer_attention(*parts, [first, second])
    assert both.pieces == alone.pieces and not np.allclose(both.frames, alone.frames)
    seen = [np.flatnonzero(row).max() for row in both.weights[0]]
    assert np.diff(seen).tolist() == [1] * len(ids)


def test_padded_frames_get_no_attention(module, tokenizer, frames):
    template, mask = TEMPLATES["short"], np.array([True, True, False])
    turns = [AnsweredTurn(QUESTION, tokenizer.encode(ANSWER))]
    attention = answer_attention(module, tokenizer, template, frames, mask, turns)
    assert (attention.frames[..., 2] == 0).all() and (attention.frames[..., :2] > 0).all()
    with pytest.raises(ValueError, match="clips of 3 frames, got 2"):
        answer_attention(module, tokenizer, template, frames[:2], mask, turns)
    with pytest.raises(PromptError, match="empty"):
        empty = [AnsweredTurn(" ", [4])]
        answer_attention(module, tokenizer, template, frames, mask, empty)
