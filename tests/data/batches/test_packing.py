"""Packed rows: what each token sees and learns, and that an epoch uses every segment once."""

import numpy as np
import pytest

from rvllm_jax.data.batches import packing
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX

HEAD = packing.prefix([1, 5], [6], visual=np.asarray([0, 1, 4], np.int32))
SEGMENTS = [
    (np.asarray([10, 11, 12, 2]), np.asarray([0, 0, 1, 1])),
    (np.asarray([20, 21, 2, 22, 23, 2]), np.asarray([0, 1, 1, 0, 1, 1])),
]


def test_a_row_worked_out_by_hand():
    row = packing.pack_sequence(HEAD, SEGMENTS, 18)
    expected = {
        "tokens": [1, 5, 0, 0, 0, 6, 10, 11, 12, 2, 20, 21, 2, 22, 23, 2, 0, 0],
        "slots": [-1, -1, 0, 1, 4, -1] + [-1] * 12,
        "positions": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 7, 8, 9, 10, 11, 0, 0],
        "segments": [0] * 6 + [1] * 4 + [2] * 6 + [-1] * 2,
        "targets": [0] * 6 + [11, 12, 2, 0] + [21, 2, 22, 23, 2, 0] + [0, 0],
        "weights": [0] * 6 + [0, 1, 1, 0] + [1, 1, 0, 1, 1, 0] + [0, 0],
    }
    assert {name: value.tolist() for name, value in row.items()} == expected
    assert {v.dtype for k, v in row.items() if k != "weights"} == {np.dtype(np.int32)}
    assert row["weights"].dtype == np.float32


def test_each_packed_segment_is_what_it_is_alone():
    both = packing.pack_sequence(HEAD, SEGMENTS, 30)
    for number, segment in enumerate(SEGMENTS, 1):
        alone = packing.pack_sequence(HEAD, [segment], 30)
        for name in ("tokens", "slots", "positions", "targets", "weights"):
            chosen = both[name][(both["segments"] == PREFIX) | (both["segments"] == number)]
            assert (chosen == alone[name][alone["segments"] >= 0]).all(), name


def test_text_stands_where_the_video_would():
    row = packing.pack_sequence(packing.prefix([1], [6], text=[30, 31]), SEGMENTS[:1], 10)
    assert row["tokens"][:5].tolist() == [1, 30, 31, 6, 10]
    assert (row["slots"] == NO_SLOT).all()
    with pytest.raises(ValueError, match="either visual or text"):
        packing.prefix([1], [6])


def test_an_empty_row_teaches_nothing():
    row = packing.empty_sequence(4)
    assert (row["segments"] == PADDING).all() and not row["weights"].any()
    assert (row["slots"] == NO_SLOT).all() and not row["tokens"].any()


def test_a_row_that_passes_the_context_is_refused():
    assert packing.pack_sequence(HEAD, SEGMENTS, 16)["segments"][-1] == 2
    with pytest.raises(packing.PackingError, match=r"16 tok.*config\.data\.context = 15: raise"):
        packing.pack_sequence(HEAD, SEGMENTS, 15)


def test_every_segment_is_in_one_row_that_it_fits():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(1, 20, rng.integers(1, 30)) for _ in range(200)]
    budgets = rng.integers(20, 60, 200)
    rows = packing.plan_sequences(lengths, budgets, 5)
    used = []
    for number in range(len(rows)):
        clip, segments = rows[number]
        assert 1 <= len(segments) <= 5
        assert lengths[clip][segments].sum() <= budgets[clip]
        used += [(clip, int(s)) for s in segments]
    assert sorted(used) == [(c, s) for c, own in enumerate(lengths) for s in range(len(own))]
    assert len(used) == len(set(used))


def test_rows_are_filled_before_a_new_one_is_opened():
    rows = packing.plan_sequences([[6, 6, 4, 4], [1] * 7], [10, 10], 3)
    assert [rows[i][1].tolist() for i in range(len(rows))] == [
        [0, 2], [1, 3], [0, 1, 2], [3, 4, 5], [6]
    ]  # fmt: skip
    assert rows.videos.tolist() == [0, 0, 1, 1, 1]


def test_segments_that_can_never_fit_are_refused():
    with pytest.raises(packing.PackingError, match=r"video 1 .*11 .*10 are.*config\.data\.context"):
        packing.plan_sequences([[1], [3, 11]], [10, 10], 2)
    with pytest.raises(packing.PackingError, match=r"config\.data\.questions=0: expected"):
        packing.plan_sequences([[1]], [10], 0)


def test_epoch_order_is_a_pure_function_and_differs_by_epoch_and_seed():
    order = packing.epoch_order(100, 3, 7).copy()
    packing.epoch_order.cache_clear()
    assert (packing.epoch_order(100, 3, 7) == order).all()
    assert sorted(order) == list(range(100))
    for other in (packing.epoch_order(100, 3, 8), packing.epoch_order(100, 4, 7)):
        assert (other != order).any()


def test_ragged_gives_back_what_it_was_made_of():
    given = [([1, 2, 3], [0, 0, 1]), ([], []), ([2**31 - 1], [1])]
    ragged = packing.Ragged(given)
    assert ragged.lengths.tolist() == [3, 0, 1] and len(ragged) == 3
    for number, (ids, weights) in enumerate(given):
        got = ragged[number]
        assert (got[0].tolist(), got[1].tolist()) == (ids, weights)
        assert (got[0].dtype, got[1].dtype) == (np.int32, np.float32)
