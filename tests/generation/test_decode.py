"""Cached, batched decoding against the plain way: one question at a time, all tokens each time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.generation import decode
from rvllm_jax.models.llama import LlamaConfig
from rvllm_jax.models.pure import PureModel
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX, Questions, VisualLayout

LLAMA = LlamaConfig(40, 16, 2, 4, 2, 8, 24, context=32)
LAYOUT = VisualLayout("global", frames=3)
PREFIX_LENGTHS = (7, 5)  # before the padding; with 3 and 2 visual tokens at places 1, 2, ...
QUESTION_LENGTHS = ((4, 2, 3), (1, 4, 0))  # the last question of the second video is missing
NEVER, MAX_NEW = -5, 6  # an eos that no token is


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def model_and_arrays():
    """A model of large random weights, whose answers differ from question to question."""
    pure = PureModel.of(
        lambda rngs: VideoLLM(
            ResNetConfig((1,), False, (8,), stem="small"),
            LLAMA,
            LAYOUT,
            rngs=rngs,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
        )
    )
    params, stats = jax.jit(pure.init)(jax.random.key(3))
    large = {n: p * 10 if n.startswith("decoder/") and p.ndim > 1 else p for n, p in params.items()}
    return pure, large, stats


def some_questions() -> Questions:
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
        asked=np.where(asked_mask, rng.integers(1, 40, (B, Q, Lq)), 0),
        asked_mask=asked_mask,
        ids=np.array([[0, 1, 2], [3, 4, -1]], np.int32),
        counts=np.ones(B, np.int32),
    )


@functools.partial(jax.jit, static_argnames=("eos_id", "max_new", "blind"))
def answers(params, stats, questions, eos_id=NEVER, max_new=MAX_NEW, blind=False):
    model = model_and_arrays()[0].merge(params, stats)
    return decode.greedy(model, questions, max_new=max_new, eos_id=eos_id, blind=blind)


def ask(questions, **options) -> np.ndarray:
    _, params, stats = model_and_arrays()
    return np.asarray(answers(params, stats, questions, **options))


@functools.cache
def plainly() -> np.ndarray:
    """[B, Q, MAX_NEW] without cache or batch, from the training-time forward pass; one row of
    static length, so that it compiles once: what comes later is not seen."""
    pure, params, stats = model_and_arrays()
    questions = some_questions()

    @jax.jit
    def logits(frames, mask, tokens, slots):
        model = pure.merge(params, stats)
        visual = model.encode(frames, mask, use_running=True)
        L = tokens.shape[1]
        x = model.embed(tokens, slots, visual)
        hidden, _ = model.decoder(x, jnp.arange(L)[None], jnp.zeros((1, L), jnp.int32))
        return model.decoder.logits(hidden)[0]

    ids = np.zeros((2, 3, MAX_NEW), np.int32)
    for b, q in np.ndindex(2, 3):
        prefix, length = PREFIX_LENGTHS[b], QUESTION_LENGTHS[b][q]
        row = [*questions.tokens[b, :prefix], *questions.asked[b, q, :length]]
        for step in range(MAX_NEW):
            tokens, slots = np.zeros((1, 20), np.int32), np.full((1, 20), NO_SLOT, np.int32)
            tokens[0, : len(row)], slots[0, :prefix] = row, questions.slots[b, :prefix]
            frames = questions.frames[b : b + 1], questions.frame_mask[b : b + 1]
            ids[b, q, step] = np.argmax(logits(*frames, tokens, slots)[len(row) - 1])
            row.append(ids[b, q, step])
    return ids


def test_ids_are_those_of_uncached_decoding():
    expected, ids = plainly(), ask(some_questions())
    assert ids.dtype == np.int32 and ids.shape == (2, 3, MAX_NEW)
    there = some_questions().ids >= 0
    assert len({tuple(answer) for answer in expected[there]}) >= 4  # the answers do differ
    np.testing.assert_array_equal(ids[there], expected[there])


def test_an_answer_ends_with_eos_and_the_others_go_on():
    free = ask(some_questions())
    eos_id = int(free[0, 0, 2])
    ids = ask(some_questions(), eos_id=eos_id)
    ended = False
    for b, q in np.ndindex(2, 3):
        if some_questions().ids[b, q] < 0:
            assert (ids[b, q] == eos_id).all()
            continue
        until = np.flatnonzero(free[b, q] == eos_id)
        stop = until[0] if len(until) else MAX_NEW
        np.testing.assert_array_equal(ids[b, q, :stop], free[b, q, :stop])
        assert (ids[b, q, stop:] == eos_id).all()
        ended |= stop < MAX_NEW
    assert ended and not (ids[some_questions().ids >= 0] == eos_id).any(-1).all()


def test_decoding_stops_when_all_answers_have_ended(monkeypatch):
    """The row without a question does not keep the loop going."""
    calls, next_token = [], decode._next_token

    def counted(model, state, *options):
        jax.debug.callback(lambda step: calls.append(int(step)), state.step)
        return next_token(model, state, *options)

    monkeypatch.setattr(decode, "_next_token", counted)
    questions = some_questions()
    only = questions._replace(ids=np.where(questions.ids == 0, 0, -1))
    eos_id = int(plainly()[0, 0, 3])
    end = int(np.flatnonzero(plainly()[0, 0] == eos_id)[0])
    pure, params, stats = model_and_arrays()
    run = jax.jit(
        lambda: decode.greedy(pure.merge(params, stats), only, max_new=MAX_NEW, eos_id=eos_id)
    )
    jax.block_until_ready(run())
    jax.effects_barrier()
    assert sorted(calls) == list(range(1, end + 1)) and end < MAX_NEW - 1


def test_one_question_does_not_change_anothers_answer():
    questions = some_questions()
    asked = questions.asked.copy()
    asked[0, 1] = asked[0, 1] % 39 + 1
    ids, other = ask(questions), ask(questions._replace(asked=asked))
    np.testing.assert_array_equal(ids[:, [0, 2]], other[:, [0, 2]])
    assert (ids[0, 1] != other[0, 1]).any()


def test_blind_ignores_the_frames():
    questions = some_questions()
    inverted = questions._replace(frames=255 - questions.frames)
    np.testing.assert_array_equal(ask(questions, blind=True), ask(inverted, blind=True))
    assert (ask(questions, blind=True) != ask(questions)).any()


def test_text_in_the_videos_place():
    """Questions without frames (T = 0) decode too."""
    questions = some_questions()
    text = questions._replace(
        frames=questions.frames[:, :0],
        frame_mask=questions.frame_mask[:, :0],
        slots=np.full_like(questions.slots, NO_SLOT),
    )
    ids = ask(text)
    assert ((ids >= 0) & (ids < LLAMA.vocab_size))[questions.ids >= 0].all()


def test_no_room_for_an_answer_is_refused():
    with pytest.raises(ValueError, match="max_new=0"):
        decode.greedy(None, some_questions(), max_new=0, eos_id=2)
