"""A small video model in float64, whose answers differ from question to question."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX, Questions, VisualLayout

LLAMA = LlamaConfig(40, 16, 2, 4, 2, 8, 24, context=64)
LAYOUT = VisualLayout("global", frames=3)
PREFIX_LENGTHS = (7, 5)  # before the padding; with 3 and 2 visual tokens at places 1, 2, ...
QUESTION_LENGTHS = ((4, 2, 3), (1, 4, 0))  # the last question of the second video is missing


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_model(llama: LlamaConfig, layout: VisualLayout = LAYOUT):
    """A FunctionalModel, parameters of which the decoder's matrices are large, and statistics."""
    with jax.enable_x64(True):
        pure = FunctionalModel.of(
            lambda rngs: VideoLLM(
                ResNetConfig((1,), False, (8,), stem="small"),
                llama,
                layout,
                rngs=rngs,
                dtype=jnp.float64,
                param_dtype=jnp.float64,
            )
        )
        params, stats = jax.jit(pure.init)(jax.random.key(3))
        large = {
            name: p * 10 if name.startswith("decoder/") and p.ndim > 1 else p
            for name, p in params.items()
        }
    return pure, large, stats


@pytest.fixture(scope="session")
def model_and_arrays():
    return make_model(LLAMA)


@pytest.fixture(scope="session")
def some_questions() -> Questions:
    """Two videos of 3 and 2 frames, asked 3 and 2 questions of different lengths."""
    rng = np.random.default_rng(0)
    B, P, Q, Lq = 2, 7, 3, 4
    slots = np.full((B, P), NO_SLOT, np.int32)
    slots[0, 1:4], slots[1, 1:3] = np.arange(3), np.arange(2)
    in_prefix = np.arange(P) < np.array(PREFIX_LENGTHS)[:, None]
    asked_mask = np.arange(Lq) < np.array(QUESTION_LENGTHS)[:, :, None]
    return Questions(
        frames=rng.integers(0, 256, (B, 3, 4, 4, 3), dtype=np.uint8),
        frame_mask=np.array([[True] * 3, [True, True, False]]),
        tokens=np.where(in_prefix & (slots == NO_SLOT), rng.integers(1, 40, (B, P)), 0),
        slots=slots,
        positions=np.where(in_prefix, np.arange(P), 0),
        segments=np.where(in_prefix, PREFIX, PADDING).astype(np.int32),
        question_tokens=np.where(asked_mask, rng.integers(1, 40, (B, Q, Lq)), 0),
        question_mask=asked_mask,
        ids=np.array([[0, 1, 2], [3, 4, -1]], np.int32),
        view_counts=np.ones(B, np.int32),
    )


@pytest.fixture(scope="session")
def uncached_logits(model_and_arrays):
    """logits(questions, b, q, answer) -> [V] of the next token, without cache or batch, from the
    training-time forward pass; one row of static length, so that it compiles once: what comes
    later is not seen."""
    pure, params, stats = model_and_arrays

    @jax.jit
    def logits(frames, mask, tokens, slots):
        model = pure.merge(params, stats)
        visual = model.encode(frames, mask, use_running=True)
        L = tokens.shape[1]
        x = model.embed(tokens, slots, visual)
        hidden, _ = model.decoder(x, jnp.arange(L)[None], jnp.zeros((1, L), jnp.int32))
        return model.decoder.logits(hidden)[0]

    def of(questions, b, q, answer):
        prefix = int((questions.segments[b] == PREFIX).sum())
        asked = questions.question_tokens[b, q][questions.question_mask[b, q]]
        row = [*questions.tokens[b, :prefix], *asked, *answer]
        tokens, slots = np.zeros((1, 20), np.int32), np.full((1, 20), NO_SLOT, np.int32)
        tokens[0, : len(row)], slots[0, :prefix] = row, questions.slots[b, :prefix]
        frames = questions.frames[b : b + 1], questions.frame_mask[b : b + 1]
        return np.asarray(logits(*frames, tokens, slots))[len(row) - 1]

    return of


@pytest.fixture(scope="session")
def small_model():
    return make_model
