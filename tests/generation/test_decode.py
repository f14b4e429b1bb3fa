"""Cached, batched decoding against the plain way: one question at a time, all tokens each time."""

import functools

import jax
import numpy as np
import pytest

from rvllm_jax.generation import decode
from rvllm_jax.types import NO_SLOT

# The model and questions of tests/generation/conftest.py; float64 throughout.
NEVER, MAX_NEW = -5, 6  # an eos that no token is
VOCAB = 40


@pytest.fixture(scope="module")
def ask(model_and_arrays):
    pure, params, stats = model_and_arrays

    @functools.partial(jax.jit, static_argnames=("eos_id", "blind"))
    def answers(questions, eos_id, blind):
        model = pure.merge(params, stats)
        return decode.generate(model, questions, max_new=MAX_NEW, stop_ids=(eos_id,), blind=blind)

    def run(questions, eos_id=NEVER, blind=False) -> np.ndarray:
        return np.asarray(answers(questions, eos_id, blind))

    return run


@pytest.fixture(scope="module")
def plainly(some_questions, uncached_logits) -> np.ndarray:
    """[B, Q, MAX_NEW] without cache or batch; zeros where there is no question."""
    ids = np.zeros((2, 3, MAX_NEW), np.int32)
    with jax.enable_x64(True):
        for b, q in np.argwhere(some_questions.ids >= 0):
            for step in range(MAX_NEW):
                logits = uncached_logits(some_questions, b, q, ids[b, q, :step])
                ids[b, q, step] = np.argmax(logits)
    return ids


def test_ids_are_those_of_uncached_decoding(ask, plainly, some_questions):
    expected, ids = plainly, ask(some_questions)
    assert ids.dtype == np.int32 and ids.shape == (2, 3, MAX_NEW)
    there = some_questions.ids >= 0
    assert len({tuple(answer) for answer in expected[there]}) >= 4  # the answers do differ
    np.testing.assert_array_equal(ids[there], expected[there])


def test_an_answer_ends_with_eos_and_the_others_go_on(ask, some_questions):
    free = ask(some_questions)
    eos_id = int(free[0, 0, 2])
    ids = ask(some_questions, eos_id=eos_id)
    ended = False
    for b, q in np.ndindex(2, 3):
        if some_questions.ids[b, q] < 0:
            assert (ids[b, q] == eos_id).all()
            continue
        until = np.flatnonzero(free[b, q] == eos_id)
        stop = until[0] if len(until) else MAX_NEW
        np.testing.assert_array_equal(ids[b, q, :stop], free[b, q, :stop])
        assert (ids[b, q, stop:] == eos_id).all()
        ended |= stop < MAX_NEW
    assert ended and not (ids[some_questions.ids >= 0] == eos_id).any(-1).all()


def test_decoding_stops_when_all_answers_have_ended(
    monkeypatch, model_and_arrays, plainly, some_questions
):
    """The row without a question does not keep the loop going."""
    calls, next_token = [], decode._next_token

    def counted(model, state, *options):
        jax.debug.callback(lambda step: calls.append(int(step)), state.step)
        return next_token(model, state, *options)

    monkeypatch.setattr(decode, "_next_token", counted)
    questions = some_questions
    only = questions._replace(ids=np.where(questions.ids == 0, 0, -1))
    eos_id = int(plainly[0, 0, 3])
    end = int(np.flatnonzero(plainly[0, 0] == eos_id)[0])
    pure, params, stats = model_and_arrays
    run = jax.jit(
        lambda: decode.generate(
            pure.merge(params, stats), only, max_new=MAX_NEW, stop_ids=(eos_id,)
        )
    )
    jax.block_until_ready(run())
    jax.effects_barrier()
    assert sorted(calls) == list(range(1, end + 1)) and end < MAX_NEW - 1


def test_one_question_does_not_change_anothers_answer(ask, some_questions):
    questions = some_questions
    asked = questions.question_tokens.copy()
    asked[0, 1] = asked[0, 1] % 39 + 1
    ids, other = ask(questions), ask(questions._replace(question_tokens=asked))
    np.testing.assert_array_equal(ids[:, [0, 2]], other[:, [0, 2]])
    assert (ids[0, 1] != other[0, 1]).any()


def test_blind_ignores_the_frames(ask, some_questions):
    questions = some_questions
    inverted = questions._replace(frames=255 - questions.frames)
    np.testing.assert_array_equal(ask(questions, blind=True), ask(inverted, blind=True))
    assert (ask(questions, blind=True) != ask(questions)).any()


def test_text_in_the_videos_place(ask, some_questions):
    """Questions without frames (T = 0) decode too."""
    questions = some_questions
    text = questions._replace(
        frames=questions.frames[:, :0],
        frame_mask=questions.frame_mask[:, :0],
        slots=np.full_like(questions.slots, NO_SLOT),
    )
    ids = ask(text)
    assert ((ids >= 0) & (ids < VOCAB))[questions.ids >= 0].all()


def test_no_room_for_an_answer_is_refused(some_questions):
    with pytest.raises(ValueError, match="max_new=0"):
        decode.generate(None, some_questions, max_new=0, stop_ids=(2,))
