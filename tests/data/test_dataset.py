"""Conversations tokenized and packed over a store: captions, dialogues, and what is refused."""

import pickle

import numpy as np
import pytest

from rvllm_jax.data import chat, pipeline
from rvllm_jax.data.conversations import Conversation, Turn
from rvllm_jax.data.frames import FrameStore, write_store
from rvllm_jax.data.packing import PackingError
from rvllm_jax.types import NO_SLOT, PREFIX


def test_a_caption_stands_in_the_video_s_place(make, tk, conversations, template, answers):
    dataset = make(input="caption_in_slot")
    before, after = chat.prefix_ids(tk, template)
    batches = list(pipeline.train_batches(dataset, seed=0, batch=2, epochs=1))
    seen = set()
    for batch in batches:
        assert batch.frames.shape == (2, 0, 32, 32, 3) and batch.frame_mask.shape == (2, 0)
        assert (batch.slots == NO_SLOT).all()
        for row in np.flatnonzero(batch.rows >= 0):
            conversation = conversations[batch.rows[row]]
            prefix = batch.tokens[row][batch.segments[row] == PREFIX].tolist()
            assert prefix == before + tk.encode(conversation.caption) + after
            seen.add(int(batch.rows[row]))
    assert seen == set(range(5))
    found = sorted(a for b in batches for a in answers(b))
    assert found == sorted(f" {t.answer}" for c in conversations for t in c.turns)


def test_a_caption_needs_no_store(tk, conversations, layout, template):
    dataset = pipeline.Dataset(conversations, None, tk, template, layout, input="caption_in_slot",
                               context=96, max_segments=3, crop=32)  # fmt: skip
    assert len(list(pipeline.loss_batches(pickle.loads(pickle.dumps(dataset)), batch=4))) == 2


def test_turns_of_a_dialogue_can_be_one_segment(make, tk, conversations, template):
    dataset = make(independent_turns=False, context=160)
    batches = list(pipeline.loss_batches(dataset, batch=1))
    first = next(b for b in batches if b.rows[0] == 1)
    ids, weights = chat.segment_ids(tk, template, conversations[1].turns)
    own = first.segments[0] == 1
    assert first.segments[0].max() == 1
    assert first.tokens[0][own].tolist() == ids
    assert first.weights[0][own].tolist() == [*weights[1:], 0]
    assert sum(b.segments[0].max() for b in batches) == len(conversations)


def test_a_prompt_longer_than_the_context_is_refused_before_training(make, conversations):
    long = conversations + [Conversation("wordy", "d.mp4", (Turn("Why? " * 99, "So."),), "x")]
    with pytest.raises(PackingError, match=r"'wordy'.*config\.data\.context = 96: raise"):
        make(long)


def test_what_does_not_fit_together_is_refused_by_name(make, conversations):
    stray = Conversation("stray", "gone.mp4", conversations[0].turns, "x")
    with pytest.raises(pipeline.PipelineError, match=r"'stray': video 'gone\.mp4' is not in"):
        make([*conversations, stray])
    with pytest.raises(pipeline.PipelineError, match="crop of 40 .*36 x 48.*config.data.crop"):
        make(crop=40)
    with pytest.raises(pipeline.PipelineError, match="stage.input is 'audio'"):
        make(input="audio")
    with pytest.raises(pipeline.PipelineError, match="no conversation is left of 0"):
        make([])


def test_conversations_of_videos_set_aside_are_left_out_by_name(
    clips_folder, make, tmp_path, conversations, lengths
):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    files = {n: clips_folder.parent / n for n in lengths} | {"broken.mp4": tmp_path / "broken.mp4"}
    write_store(tmp_path / "store", files, short_side=36)
    lost = Conversation("lost", "broken.mp4", conversations[0].turns, "x")
    dataset = make([lost, *conversations], store=FrameStore(tmp_path / "store"))
    assert list(dataset.left_out) == ["lost"] and "broken.mp4" in dataset.left_out["lost"]
    assert {n for n, _ in dataset.questions} == {1, 2, 3, 4, 5}
    rows = {int(r) for b in pipeline.loss_batches(dataset, batch=1) for r in b.rows}
    assert rows == {1, 2, 3, 5}
