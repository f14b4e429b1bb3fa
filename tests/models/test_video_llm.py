import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import IMAGENET_MEAN, VideoLLM, normalise
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX, Batch, VisualLayout

RESNET = ResNetConfig((1,), False, (8,), stem="small")
LLAMA = LlamaConfig(40, 16, 1, 2, 1, 8, 24, context=32)
LAYOUT = VisualLayout("grid", frames=3, grid=2)
B, L, SIZE = 2, 20, 4


@pytest.fixture(scope="module")
def model():
    return FunctionalModel.of(lambda rngs: VideoLLM(RESNET, LLAMA, LAYOUT, rngs=rngs))


@pytest.fixture(scope="module")
def arrays(model):
    return jax.jit(model.init)(jax.random.key(0))


def some_batch(frames=LAYOUT.frames) -> Batch:
    """Row 0 has 3 frames, row 1 only 2; visual tokens stand at places 2, 3, ..."""
    rng = np.random.default_rng(0)
    mask = np.array([[True] * 3, [True, True, False]])[:, :frames]
    slots = np.full((B, L), NO_SLOT, np.int32)
    for row in range(B):
        filled = LAYOUT.filled(int(mask[row].sum()))
        slots[row, 2 : 2 + len(filled)] = filled
    tokens = np.where(slots == NO_SLOT, rng.integers(1, LLAMA.vocab_size, (B, L)), 0)
    segments = np.where(np.arange(L) < 16, PREFIX, 1) * np.ones((B, 1))
    segments[1, -2:] = PADDING
    return Batch(
        frames=rng.integers(0, 256, (B, frames, SIZE, SIZE, 3), dtype=np.uint8),
        frame_mask=mask,
        tokens=tokens.astype(np.int32),
        slots=slots,
        positions=np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        segments=segments.astype(np.int32),
        targets=rng.integers(0, LLAMA.vocab_size, (B, L)).astype(np.int32),
        weights=(segments == 1).astype(np.float32),
        examples=np.arange(B, dtype=np.int32),
        errors=np.zeros(B, np.int32),
    )


@pytest.fixture(scope="module")
def forward(model, arrays):
    """(batch, use_running) -> hidden states, statistics afterwards."""

    def run(batch, use_running):
        module = model.merge(*arrays)
        return module(batch, use_running=use_running), model.read_stats(module)

    return jax.jit(run, static_argnames="use_running")


def test_visual_tokens_stand_in_their_slots(model, arrays):
    tokens = np.array([[5, 0, 0, 7], [0, 9, 9, 9]], np.int32)
    slots = np.array([[NO_SLOT, 2, 0, NO_SLOT], [1, NO_SLOT, NO_SLOT, NO_SLOT]], np.int32)
    visual = np.random.default_rng(0).normal(size=(2, 3, LLAMA.width)).astype(np.float32)
    module = model.merge(*arrays)
    words = module.decoder.embed.embedding[...]
    expected = [
        [words[5], visual[0, 2], visual[0, 0], words[7]],
        [visual[1, 1], words[9], words[9], words[9]],
    ]
    np.testing.assert_array_equal(module.embed(tokens, slots, visual), np.array(expected))
    np.testing.assert_array_equal(module.embed(tokens, slots, None), words[tokens])


def test_normalise_is_imagenets():
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    black, white = normalise(pixels, jnp.float32)
    np.testing.assert_allclose(black, [-2.117904, -2.035714, -1.804444], rtol=1e-5)
    np.testing.assert_allclose(white, [2.248908, 2.428571, 2.64], rtol=1e-5)
    mean = np.round(np.array(IMAGENET_MEAN) * 255).astype(np.uint8)
    np.testing.assert_allclose(normalise(mean, jnp.float32), 0, atol=0.01)
    assert normalise(mean, jnp.bfloat16).dtype == jnp.bfloat16


def test_blind_sees_nothing_and_the_sighted_does(model, arrays):
    encode = jax.jit(
        lambda frames, mask, blind: model.merge(*arrays).encode(
            frames, mask, use_running=True, blind=blind
        ),
        static_argnames="blind",
    )
    batch = some_batch()
    inverted = 255 - batch.frames
    for blind in (True, False):
        first = encode(batch.frames, batch.frame_mask, blind)
        second = encode(inverted, batch.frame_mask, blind)
        assert first.shape == (B, LAYOUT.tokens, LLAMA.width)
        assert np.array_equal(first, second) == blind


@pytest.mark.parametrize("use_running", [True, False])
def test_padded_frames_do_not_matter(forward, use_running):
    batch = some_batch()
    frames = batch.frames.copy()
    frames[1, 2] = 255 - frames[1, 2]
    hidden, stats = forward(batch, use_running)
    other, other_stats = forward(batch._replace(frames=frames), use_running)
    np.testing.assert_array_equal(hidden, other)
    jax.tree.map(np.testing.assert_array_equal, stats, other_stats)
    frames[1, 1] = 255 - frames[1, 1]
    seen, _ = forward(batch._replace(frames=frames), use_running)
    assert np.abs(seen - hidden)[1].max() > 1e-3


def test_statistics_move_in_training_only(forward, arrays):
    _, before = arrays
    _, running = forward(some_batch(), True)
    _, trained = forward(some_batch(), False)
    jax.tree.map(np.testing.assert_array_equal, running, dict(before))
    assert all(np.abs(trained[name] - before[name]).max() > 0 for name in before)


def test_without_frames_the_encoder_does_not_run(model, arrays):
    params, stats = arrays
    batch = some_batch(frames=0)

    def total(params):
        module = model.merge(params, stats)
        return jnp.sum(module(batch, use_running=False) ** 2), model.read_stats(module)

    gradients, after = jax.jit(jax.grad(total, has_aux=True))(params)
    jax.tree.map(np.testing.assert_array_equal, after, dict(stats))
    for name, gradient in gradients.items():
        assert name.startswith("decoder/") or not np.any(gradient), name
    assert np.any(gradients["decoder/embed/embedding"])


def test_every_part_gets_a_gradient(model, arrays):
    params, stats = arrays
    batch = some_batch()

    def loss(params):
        module = model.merge(params, stats)
        hidden = module(batch, use_running=False)
        return token_loss_sum(module.decoder, hidden, batch.targets, batch.weights)

    for name, gradient in jax.jit(jax.grad(loss))(params).items():
        assert np.isfinite(gradient).all(), name
        # With one layer the head alone is reached by no residual path around it.
        assert np.any(gradient), name
