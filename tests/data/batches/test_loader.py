"""The pipeline on a real store of real videos: streams, resuming, hosts, bad records, controls."""

import collections
import functools
import multiprocessing
import os
import signal

import numpy as np
import pytest

from rvllm_jax.data.batches import loader
from rvllm_jax.data.batches.clips import FrameSampling, load_clip
from rvllm_jax.data.batches.dataset import READABLE, UNREADABLE, DatasetError
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.text import prompt
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX


def every_question(dataset, *, batch, most, shown=None, test_views=False, **options):
    """Batches of every question, up to `most` of a video together: about the centred clip of its
    video or of the one in `shown`, or about all test views of it."""
    about, views = {}, functools.cache(dataset.views)
    for question, video in enumerate(shown or dataset.question_videos):
        about.setdefault(video, []).append(question)
    sets = [
        loader.QuestionSet(video, numbers[at : at + most], view)
        for video, numbers in sorted(about.items())
        for at in range(0, len(numbers), most)
        for view in (views(video) if test_views else [None])
    ]
    return loader.question_batches(dataset, sets, batch=batch, max_questions=most, **options)


def _equal(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other)
        for field, a, b in zip(one._fields, one, other, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all(), field


def test_an_epoch_uses_every_pair_once(make, examples, answers):
    dataset = make()
    steps = dataset.steps_per_epoch(2)
    batches = list(loader.train_batches(dataset, seed=5, batch=2, epochs=3))
    assert len(batches) == 3 * steps == dataset.num_steps(3, 2)
    expected = sorted(f" {t.answer}" for c in examples for t in c.turns)
    orders = []
    for epoch in range(3):
        found = [a for b in batches[epoch * steps :][:steps] for a in answers(b)]
        assert sorted(found) == expected
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]


def test_shapes_and_types_are_those_of_the_batch(make):
    batch = next(loader.train_batches(make(), seed=0, batch=2, epochs=1))
    assert batch.frames.shape == (2, 4, 32, 32, 3) and batch.frames.dtype == np.uint8
    assert batch.frame_mask.shape == (2, 4) and batch.frame_mask.dtype == bool
    for field in ("tokens", "slots", "positions", "segments", "targets"):
        value = getattr(batch, field)
        assert value.shape == (2, 96) and value.dtype == np.int32
    assert batch.weights.shape == (2, 96) and batch.weights.dtype == np.float32
    assert batch.examples.dtype == batch.errors.dtype == np.int32


def test_rows_hold_the_video_s_slots_and_its_examples_alone(
    make, examples, lengths, layout, answers
):
    dataset, seen = make(), collections.Counter()
    for batch in loader.loss_batches(dataset, batch=1):
        number, prefix = int(batch.examples[0]), batch.segments[0] == PREFIX
        name = examples[number].video[0]
        frames = int(batch.frame_mask.sum())
        assert frames == min(4, -(-lengths[f"{name}.mp4"] // 2))
        slots = batch.slots[0][batch.slots[0] != NO_SLOT]
        assert slots.tolist() == layout.filled(frames).tolist()
        assert (batch.segments[0][batch.slots[0] != NO_SLOT] == PREFIX).all()
        for answer in answers(batch):
            assert answer.startswith(f" Answer {name}")
            seen[number] += 1
        for segment in range(1, batch.segments[0].max() + 1):
            own = batch.positions[0][batch.segments[0] == segment]
            assert own.tolist() == list(range(prefix.sum(), prefix.sum() + len(own)))
    assert seen == {0: 6, 1: 3, 2: 1, 4: 5}  # a2's two turns share the rows of a's


def test_resuming_at_any_step_continues_the_stream(make):
    dataset = make()
    whole = list(loader.train_batches(dataset, seed=1, batch=2, steps=9))
    assert len(whole) == 9
    for start in (1, 3, 4, 8):
        resumed = loader.train_batches(make(), seed=1, batch=2, steps=9, start_step=start)
        _equal(resumed, whole[start:])
    assert list(loader.train_batches(dataset, seed=1, batch=2, steps=9, start_step=9)) == []
    other = next(loader.train_batches(dataset, seed=2, batch=2, steps=9))
    assert (other.frames != whole[0].frames).any()


def test_workers_give_the_batches_of_one_process_resumed_too(make):
    dataset = make(crop=36)
    stream = dict(seed=1, batch=72, steps=9)
    alone = list(loader.train_batches(dataset, **stream))
    assert alone[0].frames.nbytes > loader._LARGE  # so they pass through shared memory
    batches = loader.train_batches(dataset, **stream, start_step=1, workers=2)
    first = [next(batches), next(batches)]  # one of each worker: both have started
    for worker in multiprocessing.active_children():  # as a scheduler does, to save and to stop
        os.kill(worker.pid, signal.SIGTERM)
    _equal([*first, *batches], alone[1:])


def test_hosts_parts_join_to_the_global_batch(make):
    whole = loader.train_batches(make(), seed=3, batch=4, steps=5)
    parts = zip(*(loader.train_batches(make(), seed=3, batch=4, steps=5, host=h, hosts=2)
                  for h in range(2)), strict=True)  # fmt: skip
    joined = [type(a)(*(np.concatenate(pair) for pair in zip(a, b, strict=True))) for a, b in parts]
    _equal(whole, joined)
    with pytest.raises(DatasetError, match="batch 5: expected a multiple of the 2 hosts"):
        loader.train_batches(make(), seed=3, batch=5, steps=5, hosts=2)


def test_the_end_of_an_epoch_is_padded_with_rows_that_teach_nothing(make):
    dataset = make()
    assert len(dataset.sequences) == 6
    last = list(loader.train_batches(dataset, seed=1, batch=4, epochs=1))[-1]
    assert (last.examples >= 0).tolist() == [True, True, False, False]
    empty = type(last)(*(field[2:] for field in last))
    assert (empty.segments == PADDING).all() and (empty.slots == NO_SLOT).all()
    assert not empty.frame_mask.any() and not empty.weights.any()
    assert not empty.frames.any() and (empty.errors == READABLE).all()


def test_training_moves_the_clip_and_validation_centres_it(make, clips_folder):
    dataset = make()
    store, sampling = FrameStore(clips_folder), FrameSampling(4, 2)
    centred = {int(b.examples[0]): b for b in loader.loss_batches(dataset, batch=1)}
    frames, mask = load_clip(store, "b.mp4", sampling, crop=32, rng=None)
    assert (centred[1].frames[0] == frames).all() and (centred[1].frame_mask[0] == mask).all()
    drawn = [
        {
            batch.frames[0].tobytes()
            for batch in loader.train_batches(dataset, seed=seed, batch=1, epochs=8)
            if batch.examples[0] == 4
        }
        for seed in (0, 1)
    ]
    assert len(drawn[0]) > 8 and len(drawn[1] - drawn[0]) > 8  # of 8 epochs x 2 rows


def test_a_damaged_record_empties_its_row_and_says_so(clips_folder, make, tmp_path, answers):
    for file in clips_folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    store = FrameStore(tmp_path)
    [shard] = tmp_path.glob(f"*record-{store.entries['c.mp4'].shard:05d}-of*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 :: 97] = bytes(len(content[len(content) // 2 :: 97]))
    shard.write_bytes(content)
    dataset = make(store=store)
    batches = list(loader.train_batches(dataset, seed=0, batch=2, epochs=1))
    errors = {int(r): int(e) for b in batches for r, e in zip(b.examples, b.errors, strict=True)}
    assert errors == {0: 0, 1: 0, 2: UNREADABLE, 4: 0}
    for batch in batches:
        hit = batch.errors != 0
        assert not batch.weights[hit].any() and not batch.frame_mask[hit].any()
        assert (batch.segments[hit] == PADDING).all()
    found = [a for b in batches for a in answers(b)]
    assert len(found) == 14 and " Answer c 0." not in found
    asked = {int(i) for q in every_question(dataset, batch=2, most=3)
             for i in q.ids.flat}  # fmt: skip
    lost = set(range(len(dataset.questions))) - asked
    assert [dataset.questions[i] for i in lost] == [(2, 0)]


def test_every_question_is_asked_once_in_groups_of_its_video(make, tk, examples, template):
    dataset = make()
    batches = list(every_question(dataset, batch=4, most=3))
    ids = np.concatenate([b.ids for b in batches])
    assert sorted(ids[ids >= 0]) == list(range(len(dataset.questions)))
    assert sorted(dataset.questions) == [
        (n, t) for n, c in enumerate(examples) for t in range(len(c.turns))
    ]
    assert ids.shape == (8, 3) and (ids >= 0).sum(1).tolist() == [3, 3, 3, 1, 3, 2, 0, 0]
    for batch in batches:
        assert batch.question_tokens.shape == (4, 3, dataset.question_length)
        assert batch.tokens.shape == (4, dataset.prefix_length)
        for place, number in np.ndenumerate(batch.ids):
            if number < 0:
                assert not batch.question_mask[place].any()
                continue
            example, turn = dataset.questions[number]
            question = examples[example].turns[turn].question
            asked = batch.question_tokens[place][batch.question_mask[place]].tolist()
            assert asked == prompt.question_ids(tk, template, question)
            assert not np.diff(batch.question_mask[place].astype(int)).max(initial=-1) > 0
    assert (batches[-1].segments[2:] == PADDING).all() and not batches[-1].frame_mask[2:].any()


def test_the_prefix_asked_behind_is_the_prefix_trained_on(make):
    dataset = make()
    trained = {int(b.examples[0]): b for b in loader.loss_batches(dataset, batch=1)}
    for batch in every_question(dataset, batch=1, most=3):
        example = dataset.questions[batch.ids[0, 0]][0]
        other, real = trained[example], batch.segments[0] == PREFIX
        for field in ("tokens", "slots", "positions"):
            ours, theirs = getattr(batch, field)[0], getattr(other, field)[0]
            assert (ours[real] == theirs[other.segments[0] == PREFIX]).all()
        assert (batch.segments[0][~real] == PADDING).all()
        assert (batch.frames[0] == other.frames[0]).all()
        assert (batch.frame_mask[0] == other.frame_mask[0]).all()


def test_permuting_shuffles_the_real_frames_alone(make):
    dataset, moved = make(), 0
    plain = every_question(dataset, batch=6, most=3)
    shuffled = [list(every_question(dataset, batch=6, most=3, permute_seed=s))
                for s in (1, 1, 2)]  # fmt: skip
    _equal(shuffled[0], shuffled[1])
    assert (shuffled[0][0].frames != shuffled[2][0].frames).any()
    [plain] = plain
    [changed] = shuffled[0]
    _equal([plain._replace(frames=changed.frames)], [changed])
    for row, mask in enumerate(plain.frame_mask):
        ours, theirs = (b.frames[row].reshape(4, -1) for b in (plain, changed))
        assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))
        assert (theirs[~mask] == 0).all()
        moved += (ours != theirs).any()
    assert moved >= 3


def test_a_question_can_be_asked_about_another_video(make, clips_folder, examples, lengths, layout):
    dataset, store = make(), FrameStore(clips_folder)
    sizes = dict(sampling=FrameSampling(4, 2), crop=32, rng=None)
    clips = {name: load_clip(store, name, **sizes)[0].tobytes() for name in lengths}
    names = {clip: name for name, clip in clips.items()}
    shown = {}
    about = [number % 4 for number in range(len(dataset.questions))]
    for batch in every_question(dataset, batch=1, most=3, shown=about):
        video = names[batch.frames[0].tobytes()]
        shown |= {int(number): video for number in batch.ids[0] if number >= 0}
        slots = batch.slots[0][batch.slots[0] != NO_SLOT]
        assert slots.tolist() == layout.filled(int(batch.frame_mask.sum())).tolist()
    clip_names = [examples[number].video for number in dataset.first_examples]
    assert [shown[number] for number in range(len(about))] == [clip_names[c] for c in about]


def test_the_length_of_a_stream_is_given_in_one_way(make):
    for both in ({}, {"epochs": 1, "steps": 2}):
        with pytest.raises(DatasetError, match="either epochs or steps"):
            loader.train_batches(make(), seed=0, batch=1, **both)


def test_every_question_is_asked_about_every_test_clip(make, examples):
    dataset = make(views="5x5")
    batches = list(every_question(dataset, batch=4, most=2, test_views=True))
    asked = np.zeros(len(dataset.questions), int)
    of_clip = dataset.question_videos
    shown = {clip: [] for clip in range(len(dataset.first_examples))}
    for batch in batches:
        for frames, ids, count in zip(batch.frames, batch.ids, batch.view_counts, strict=True):
            numbers = ids[ids >= 0]
            asked[numbers] += count
            if len(numbers):
                shown[of_clip[numbers[0]]].append(frames)
    assert (asked == 25).all()
    for clip, frames in shown.items():
        views = dataset.views(clip)
        groups = len(frames) // len(views)
        expected = [dataset.load(clip, (), None, view=view).frames for view in views] * groups
        assert (np.stack(frames) == np.stack(expected)).all()


def test_the_one_test_clip_is_the_centred_one(make):
    how = dict(batch=4, most=2)
    plain = every_question(make(), **how)
    alike = every_question(make(), test_views=True, **how)
    for ours, theirs in zip(plain, alike, strict=True):
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_the_times_of_a_video_are_read_once_for_its_test_clips(make, monkeypatch):
    """However many groups its questions make, and not again where its clips are loaded."""
    read, own = [], FrameStore.timestamps

    def timestamps(store, name):
        read.append(name)
        return own(store, name)

    monkeypatch.setattr(FrameStore, "timestamps", timestamps)
    how = dict(batch=4, most=2, test_views=True)
    asked = list(every_question(make(crop=36, views="25x1"), **how))
    assert sorted(read) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"] and len(asked) > 4
