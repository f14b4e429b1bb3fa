"""Examples tokenized and packed over a store: captions, dialogues, and what is refused."""

import pickle

import numpy as np
import pytest

from rvllm_jax.data.batches import clips, loader
from rvllm_jax.data.batches.dataset import UNREADABLE, Dataset, DatasetError, DatasetOptions
from rvllm_jax.data.batches.packing import PackingError
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text import prompt
from rvllm_jax.types import NO_SLOT, PREFIX, Example, Turn


def test_a_caption_stands_in_the_video_s_place(make, tk, examples, template, answers):
    dataset = make(input="caption_in_slot")
    before, after = prompt.prefix_ids(tk, template)
    batches = list(loader.train_batches(dataset, seed=0, batch=2, epochs=1))
    seen = set()
    for batch in batches:
        assert batch.frames.shape == (2, 0, 32, 32, 3) and batch.frame_mask.shape == (2, 0)
        assert (batch.slots == NO_SLOT).all()
        for row in np.flatnonzero(batch.examples >= 0):
            example = examples[batch.examples[row]]
            prefix = batch.tokens[row][batch.segments[row] == PREFIX].tolist()
            assert prefix == before + tk.encode(example.caption) + after
            seen.add(int(batch.examples[row]))
    assert seen == set(range(5))
    found = sorted(a for b in batches for a in answers(b))
    assert found == sorted(f" {t.answer}" for c in examples for t in c.turns)


def test_a_caption_needs_no_store(tk, examples, layout, template):
    sizes = dict(crop=32, context=96, max_segments=3)
    options = DatasetOptions(layout, clips.FrameSampling(4, 1), **sizes, input="caption_in_slot")
    dataset = Dataset(examples, None, tk, template, options)
    assert len(list(loader.loss_batches(pickle.loads(pickle.dumps(dataset)), batch=4))) == 2


def test_turns_of_a_dialogue_can_be_one_segment(make, tk, examples, template):
    dataset = make(independent_turns=False, context=160)
    batches = list(loader.loss_batches(dataset, batch=1))
    first = next(b for b in batches if b.examples[0] == 1)
    ids, weights = prompt.segment_ids(tk, template, examples[1].turns)
    own = first.segments[0] == 1
    assert first.segments[0].max() == 1
    assert first.tokens[0][own].tolist() == ids
    assert first.weights[0][own].tolist() == [*weights[1:], 0]
    assert sum(b.segments[0].max() for b in batches) == len(examples)


def test_a_prompt_longer_than_the_context_is_refused_before_training(make, examples):
    long = examples + [Example("wordy", "d.mp4", (Turn("Why? " * 99, "So."),), "x")]
    with pytest.raises(PackingError, match=r"'wordy'.*config\.data\.context = 96: raise"):
        make(long)


def test_what_does_not_fit_together_is_refused_by_name(make, examples):
    stray = Example("stray", "gone.mp4", examples[0].turns, "x")
    with pytest.raises(DatasetError, match=r"'stray': video 'gone\.mp4' is not in"):
        make([*examples, stray])
    with pytest.raises(DatasetError, match="crop of 40 .*36 x 48.*config.data.crop"):
        make(crop=40)
    with pytest.raises(DatasetError, match="stage.input is 'audio'"):
        make(input="audio")
    with pytest.raises(DatasetError, match="no example is left of 0"):
        make([])


def test_examples_of_videos_set_aside_are_left_out_by_name(
    clips_folder, make, tmp_path, examples, lengths
):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    files = {n: clips_folder.parent / n for n in lengths} | {"broken.mp4": tmp_path / "broken.mp4"}
    write_store(tmp_path / "store", files, StoreOptions(short_side=36))
    lost = Example("lost", "broken.mp4", examples[0].turns, "x")
    dataset = make([lost, *examples], store=FrameStore(tmp_path / "store"))
    assert list(dataset.left_out) == ["lost"] and "broken.mp4" in dataset.left_out["lost"]
    assert {n for n, _ in dataset.questions} == {1, 2, 3, 4, 5}
    rows = {int(r) for b in loader.loss_batches(dataset, batch=1) for r in b.examples}
    assert rows == {1, 2, 3, 5}


@pytest.mark.parametrize("short", clips.SHORT)
@pytest.mark.parametrize("long", clips.LONG)
def test_the_prefix_has_the_slots_of_the_frames_that_the_policy_fills(
    make, examples, layout, lengths, short, long
):
    dataset = make(short=short, long=long)
    batches = [
        *loader.loss_batches(dataset, batch=1),
        *loader.train_batches(dataset, seed=3, batch=1, epochs=2),
    ]
    filled = {}
    for batch in batches:
        slots = batch.slots[0][batch.slots[0] != NO_SLOT]
        assert slots.tolist() == layout.filled(int(batch.frame_mask.sum())).tolist()
        filled[examples[batch.examples[0]].video] = int(batch.frame_mask.sum())
    b = 3 if short == "pad" else 4  # 5 frames hold 3, two apart
    assert filled == {"a.mp4": 4, "b.mp4": b, "c.mp4": 4, "d.mp4": 4}


def test_short_videos_are_padded_and_nothing_is_mirrored_unless_told_otherwise(make):
    streams = [
        loader.train_batches(make(**how), seed=0, batch=2, epochs=4)
        for how in ({}, dict(short="pad", long="window", flip=False), dict(flip=True))
    ]
    same, mirrored = 0, 0
    for plain, named, flipped in zip(*streams, strict=True):
        assert all((a == b).all() for a, b in zip(plain, named, strict=True))
        for ours, theirs in zip(plain.frames, flipped.frames, strict=True):
            assert (ours == theirs).all() or (ours[:, :, ::-1] == theirs).all()
            same += (ours == theirs).all()
            mirrored += (ours != theirs).any()
    assert same > 5 and mirrored > 5


def test_every_test_clip_of_a_video_can_be_loaded(make, lengths, examples):
    for named, distinct in (("25x1", {"a.mp4": 24, "b.mp4": 1}), ("5x5", {"a.mp4": 25})):
        dataset = make(views=named)
        for clip, number in enumerate(dataset.first_examples):
            name = examples[number].video
            views = dataset.views(clip)
            assert sum(view.count for view in views) == 25
            assert len(views) == distinct.get(name, len(views))
            for view in views[:: max(1, len(views) // 4)]:
                row = dataset.load(clip, (), None, view=view)
                expected, mask = clips.read_view(dataset.store, name, view, frames=4)
                assert (row.frames == expected).all() and (row.frame_mask == mask).all()
                centred = dataset.load(clip, (), None)
                assert (row.tokens == centred.tokens).all() and (row.slots == centred.slots).all()
    with pytest.raises(DatasetError, match="'caption_in_slot' has no test views"):
        make(input="caption_in_slot").views(0)


def test_a_row_s_frames_are_written_where_they_are_wanted(make):
    dataset = make(views="25x1")
    out = np.full((4, 32, 32, 3), 9, np.uint8)
    for clip, view in ((1, None), (0, None), (0, dataset.views(0)[3]), (-1, None)):
        row = dataset.load(clip, (), None, out, view=view)
        assert row.frames is out and out.shape == dataset.options.clip_shape
        assert (out == dataset.load(clip, (), None, view=view).frames).all()


def test_a_video_whose_times_are_damaged_gives_an_empty_row(make, clips_folder, tmp_path):
    for file in clips_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    store = FrameStore(tmp_path)
    [times] = tmp_path.glob(f"times-{store.entries['c.mp4'].shard:05d}-of*")
    times.write_bytes(times.read_bytes()[::-1])
    batches = loader.loss_batches(make(store=store), batch=1)
    errors = {int(batch.examples[0]): int(batch.errors[0]) for batch in batches}
    assert errors == {0: 0, 1: 0, 2: UNREADABLE, 4: 0}


def test_unknown_policies_are_refused_by_key(make):
    for key in ("short", "long"):
        with pytest.raises(ValueError, match=rf"config\.data\.{key} is 'cut'; expected"):
            make(**{key: "cut"})
