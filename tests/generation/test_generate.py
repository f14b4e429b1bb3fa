"""Sampled answers, stop ids, clips in lock-step and the cache's precision, of one small model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.generation import decode
from rvllm_jax.generation.sampling import GREEDY, Sampling
from rvllm_jax.types import Questions

# The model and questions of tests/generation/conftest.py; float64 throughout.
NEVER, MAX_NEW = -5, 6
HOT = Sampling(temperature=12.0, top_k=30, top_p=0.99, repetition_penalty=1.3)


@pytest.fixture
def ask(model_and_arrays):
    pure, params, stats = model_and_arrays

    @functools.partial(jax.jit, static_argnames=("sampling", "stop_ids", "views", "cache_dtype"))
    def answers(questions, seed, sampling, stop_ids, views, cache_dtype):
        model = pure.merge(params, stats)
        options = dict(sampling=sampling, stop_ids=stop_ids, views=views, cache_dtype=cache_dtype)
        return decode.generate(model, questions, max_new=MAX_NEW, seed=seed, **options)

    def run(questions, *, seed=0, sampling=GREEDY, stop_ids=(NEVER,), views=1, cache_dtype=None):
        return np.asarray(answers(questions, seed, sampling, stop_ids, views, cache_dtype))

    return run


def clips_of(questions: Questions, video: int, clips) -> Questions:
    """`clips` frames-and-masks as rows, all with the prompt and the questions of `video`."""
    rows = Questions(*(np.repeat(field[video : video + 1], len(clips), 0) for field in questions))
    frames, masks = zip(*clips, strict=True)
    return rows._replace(frames=np.stack(frames), frame_mask=np.stack(masks))


def test_seeds_decide_and_neighbours_do_not(ask, some_questions):
    seeds = np.array([[7, 7, 8], [9, 10, 11]])
    ids = ask(some_questions, seed=seeds, sampling=HOT)
    np.testing.assert_array_equal(ids, ask(some_questions, seed=seeds, sampling=HOT))
    there = some_questions.ids >= 0
    other = ask(some_questions, seed=seeds + 1, sampling=HOT)
    assert (ids != other).any(-1)[there].all()
    swapped = Questions(*(field[::-1] for field in some_questions))
    np.testing.assert_array_equal(ask(swapped, seed=seeds[::-1], sampling=HOT), ids[::-1])
    # One number gives answer a the seed number + a.
    np.testing.assert_array_equal(
        ask(some_questions, seed=3, sampling=HOT),
        ask(some_questions, seed=np.arange(6).reshape(2, 3) + 3, sampling=HOT),
    )


def test_any_of_the_stop_ids_ends_an_answer(ask, some_questions):
    free = ask(some_questions)
    stops = int(free[0, 0, 2]), int(free[1, 1, 1])
    ids = ask(some_questions, stop_ids=stops)
    for b, q in np.argwhere(some_questions.ids >= 0):
        until = np.flatnonzero(np.isin(free[b, q], stops))
        end = until[0] + 1 if len(until) else MAX_NEW
        np.testing.assert_array_equal(ids[b, q, :end], free[b, q, :end])
        assert (ids[b, q, end:] == stops[0]).all()
    assert (ids[0, 0, 2], ids[1, 1, 1]) == stops


def test_a_large_penalty_lets_no_token_come_twice(ask, some_questions):
    """Nor one of the prompt: logits of both signs are driven to the bottom."""
    ids = ask(some_questions, sampling=Sampling(repetition_penalty=1e9))
    plain = ask(some_questions)
    repeated = 0
    for b, q in np.argwhere(some_questions.ids >= 0):
        asked = some_questions.question_tokens[b, q][some_questions.question_mask[b, q]]
        text = (some_questions.slots[b] < 0) & (some_questions.segments[b] == 0)
        prompt = [*some_questions.tokens[b][text], *asked]
        assert len({*prompt, *ids[b, q]}) == len({*prompt}) + MAX_NEW
        repeated += len({*prompt, *plain[b, q]}) < len({*prompt}) + MAX_NEW
    assert repeated


def test_equal_clips_answer_like_one(ask, some_questions):
    clip = some_questions.frames[0], some_questions.frame_mask[0]
    one = ask(clips_of(some_questions, 0, [clip]), sampling=HOT)
    three = ask(clips_of(some_questions, 0, [clip] * 3), sampling=HOT, views=3)
    assert three.shape == (1, 3, MAX_NEW)
    np.testing.assert_array_equal(three, one)


def test_clips_go_on_with_the_token_of_the_mean_probability(ask, some_questions, uncached_logits):
    """Against probabilities of each clip alone, without cache, averaged by hand."""
    rng = np.random.default_rng(4)
    mask = some_questions.frame_mask[0]
    clips = [(rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8), mask) for _ in range(3)]
    counts = np.array([3, 1, 1], np.int32)
    rows = clips_of(some_questions, 0, clips)._replace(view_counts=counts)
    fused = ask(rows, views=3)[0]
    alone = ask(rows)
    for q in range(3):
        answer = []
        for _ in range(MAX_NEW):
            logits = [uncached_logits(rows, b, q, answer) for b in range(3)]
            probs = np.stack([np.exp(x) / np.exp(x).sum() for x in logits])
            answer.append(int((counts / 5 @ probs).argmax()))
        np.testing.assert_array_equal(fused[q], answer)
    assert any((alone[b] != fused).any() for b in range(3))
    # A clip that could not be read does not count; a video without any is not answered.
    first = rows._replace(ids=np.where(np.arange(3)[:, None] == 1, rows.ids, -1))
    np.testing.assert_array_equal(ask(first, views=3)[0], alone[1])
    none = rows._replace(ids=np.full_like(rows.ids, -1))
    assert (ask(none, views=3) == NEVER).all()


def test_a_bfloat16_cache_is_half_the_size_and_near(model_and_arrays, some_questions):
    pure, params, stats = model_and_arrays
    caches = [
        decode.read_prefix(pure.merge(params, stats), some_questions, 4, cache_dtype=dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert [cache.k.dtype for cache in caches] == [jnp.float32, jnp.bfloat16]
    k, rounded = (np.asarray(cache.k, np.float64) for cache in caches)
    assert 0 < np.abs(k - rounded).max() and np.linalg.norm(k - rounded) < 0.01 * np.linalg.norm(k)


def test_answers_with_a_float32_cache_are_those_of_float64(ask, some_questions):
    there = some_questions.ids >= 0
    ids = ask(some_questions, cache_dtype=jnp.float32)
    np.testing.assert_array_equal(ids[there], ask(some_questions)[there])


def test_bad_arguments_are_refused(some_questions):
    with pytest.raises(ValueError, match="stop_ids is empty"):
        decode.generate(None, some_questions, max_new=3, stop_ids=())
    with pytest.raises(ValueError, match="views=3: 2 rows"):
        decode.generate(None, some_questions, max_new=3, stop_ids=(1,), views=3)
