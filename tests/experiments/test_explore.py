"""Features and attention of frames, held against the model's own forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.config.schema import Stage
from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.text.template import ChatError
from rvllm_jax.experiments import explore
from rvllm_jax.models.attention import TokenPositions, make_mask
from rvllm_jax.models.llama import rope_angles
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import PREFIX, VisualLayout

TURN = Turn("what moves?", "a red ball")


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
    weights = explore.attention_weights(first, x, rope, mask)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (weights[0, :, 5:, 3:5] == 0).all()  # the second question does not see the first
    values = jnp.repeat(first.v(x).reshape(2, 7, 2, 8), 2, axis=2)
    out = first.o(jnp.einsum("bnqk,bknh->bqnh", weights, values).reshape(2, 7, 32))
    np.testing.assert_allclose(out, first(x, rope, mask, None)[0], rtol=1e-4, atol=1e-5)


def test_later_layers_read_what_the_decoder_itself_hands_them(module):
    """The second layer reads what the first one, `DecoderLayer` itself, hands it."""
    x = jax.random.normal(jax.random.key(2), (1, 5, 16))
    positions, segments = jnp.arange(5)[None], jnp.full((1, 5), PREFIX)
    weights = explore.decoder_attention(module.decoder, x, positions, segments)
    graph, stacked = nnx.split(module.decoder.layers)
    one, two = (nnx.merge(graph, jax.tree.map(lambda s, i=i: s[i], stacked)) for i in range(2))
    row = TokenPositions(jnp.arange(5)[None], segments)
    mask, rope = make_mask(row, row), rope_angles(module.decoder.config, positions)
    after = two.norm1(one(x, rope, mask, None)[0])
    wanted = explore.attention_weights(two.attention, after, rope, mask)
    np.testing.assert_allclose(weights[1], wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(weights[1] - weights[0]).max() > 1e-3


@pytest.mark.parametrize(("kind", "tokens_of_no_frame"), [("grid", 0), ("spatiotemporal", 4)])
def test_the_part_on_frames_is_that_of_their_tokens(kind, tokens_of_no_frame, tokenizer, frames):
    module, template = make(kind), prompt.find_template("short", tokenizer)
    looks = explore.answer_attention(module, tokenizer, template, frames, TURN)
    said = tokenizer.encode(" a red ball")
    assert looks.pieces == [tokenizer.piece(i) for i in [*said, tokenizer.eos_id]]
    assert looks.weights.shape[:3] == looks.frames.shape[:3] == (2, 4, len(said) + 1)
    np.testing.assert_allclose(looks.weights.sum(-1), 1, rtol=1e-5)
    before = len(prompt.prefix_ids(tokenizer, template)[0])
    visual = module.layout.tokens - tokens_of_no_frame
    on_tokens = looks.weights[..., before : before + visual]
    np.testing.assert_allclose(looks.frames.sum(-1), on_tokens.sum(-1), rtol=1e-5)
    own = visual // 3
    np.testing.assert_allclose(looks.frames[..., 1], on_tokens[..., own : 2 * own].sum(-1), 1e-5)


def test_padded_frames_get_no_attention(module, tokenizer, frames):
    template = prompt.find_template("short", tokenizer)
    mask = np.array([True, True, False])
    looks = explore.answer_attention(module, tokenizer, template, frames, TURN, mask)
    assert (looks.frames[..., 2] == 0).all() and (looks.frames[..., :2] > 0).all()
    with pytest.raises(ValueError, match="clips of 3 frames, got 2"):
        explore.answer_attention(module, tokenizer, template, frames[:2], TURN)
    with pytest.raises(ChatError, match="empty"):
        explore.answer_attention(module, tokenizer, template, frames, Turn(" ", "a"))


def test_features_are_those_that_global_tokens_are_made_of(frames):
    """Each frame's own, whatever stands beside it."""
    module = make("global")
    features = explore.frame_features(module, frames)
    tokens = module.encode(frames[None], np.ones((1, 3), bool), use_running=True)[0]
    np.testing.assert_allclose(module.projector(features), tokens, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(explore.frame_features(module, frames[1:2])[0], features[1], 1e-5)


def test_similarity_is_of_what_differs_between_frames():
    features = np.array([[9.0, 1.0], [9.0, -1.0], [9.0, 1.0], [9.0, -1.0]])
    signs = np.array([1, -1, 1, -1])
    np.testing.assert_allclose(explore.similarity(features), np.outer(signs, signs), atol=1e-6)
    assert (explore.similarity(np.ones((3, 4))) == 0).all()


def test_parameters_are_counted_by_what_trains_them():
    shapes = {"encoder/a": (2, 3), "projector/b": (5,), "decoder/c": (1000, 2), "decoder/d": (7,)}
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    one = Stage("one", "video", 8, (("(enc|proj).*", "sgd"), (".*", "frozen")), {"sgd": None})
    two = Stage("two", "video", 8, ((".*", "adamw"),), {"adamw": None})
    printed = explore.trained_parts([one, two], params)
    assert printed == "one: frozen 2,007, sgd 11\ntwo: adamw 2,018"
