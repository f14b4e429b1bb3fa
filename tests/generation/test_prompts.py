"""The ids of a prompt, and what is refused before a model is there."""

import dataclasses

import numpy as np
import pytest

from rvllm_jax.data.annotations.llava import llava_example
from rvllm_jax.data.text.prompt import segment_ids
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import train
from rvllm_jax.generation import prompts
from rvllm_jax.generation.prompts import AnsweredTurn, PromptError
from rvllm_jax.types import Turn, VisualLayout

TOKENIZER = train(["which way does the red circle go? it goes left and then up"] * 3, 300)
SHORT = TEMPLATES["short"]


@pytest.mark.parametrize("name", ["short", "vicuna_v1"])
@pytest.mark.parametrize("ends", ["", "t"])
def test_turns_are_asked_as_they_are_trained_on(name, ends):
    template = dataclasses.replace(TEMPLATES[name], ends=ends)
    told = [("which way?", "up"), ("and then?", "go"), ("and?", "no")]
    ids, weights = segment_ids(TOKENIZER, template, [Turn(q, a) for q, a in told])
    learned = np.flatnonzero(weights)
    runs = np.split(learned, np.flatnonzero(np.diff(learned) > 1) + 1)
    turns = [
        AnsweredTurn(question, [ids[i] for i in run[:-1]])  # without the id that ends it
        for (question, _), run in zip(told, runs, strict=True)
    ]
    sizes = dict(prefix=4, context=500)
    asked = prompts.asked(TOKENIZER, template, told[2][0], turns[:2], **sizes)
    assert asked == ids[: runs[2][0]]


def test_a_prompt_leaves_room_for_a_token_at_least():
    ids = prompts.asked(TOKENIZER, SHORT, "which way?", [], prefix=10, context=500)
    full = 10 + len(ids)
    sizes = dict(prefix=10, context=full + 1)
    assert prompts.asked(TOKENIZER, SHORT, "which way?", [], **sizes) == ids
    with pytest.raises(PromptError, match=f"10 tokens .* {len(ids)} of 0 turns .* is {full}:"):
        prompts.asked(TOKENIZER, SHORT, "which way?", [], prefix=10, context=full)


@pytest.mark.parametrize(
    "question, turns, template, message",
    [
        (" \n", [], "short", "is empty"),
        ("a \ud800", [], "short", "is not UTF-8"),
        ("why? <video>", [], "short", "has <video> where no video can go"),
        ("<video><image> why?", [], "short", "has <image> where no video can go"),
        ("<video>\n", [], "short", "is empty"),
        ("and then?", [AnsweredTurn("what?", [4])], "plain", "shows no questions"),
    ],
)
def test_what_cannot_be_asked_is_refused(question, turns, template, message):
    sizes = dict(prefix=1, context=99)
    with pytest.raises(PromptError, match=message):
        prompts.asked(TOKENIZER, TEMPLATES[template], question, turns, **sizes)


@pytest.mark.parametrize("mark", ["<video>\n", " <video> ", "<image>\n", "<video>"])
def test_a_leading_mark_of_the_video_is_left_out_as_in_training(mark):
    sizes = dict(prefix=1, context=99)
    record = {
        **{"id": "1", "video": "a.mp4"},
        "conversations": [
            {"from": "human", "value": f"{mark}which way?"},
            {"from": "gpt", "value": "up"},
        ],
    }
    (turn,) = llava_example(record).turns
    ids, _ = segment_ids(TOKENIZER, SHORT, [turn])
    asked = prompts.asked(TOKENIZER, SHORT, f"{mark}which way?", [], **sizes)
    assert asked == ids[: len(asked)] and len(asked) > 3
    assert asked == prompts.asked(TOKENIZER, SHORT, "which way?", [], **sizes)


def test_prefixes_have_few_lengths_and_the_length_that_is_told():
    layout = VisualLayout("global", 6)
    masks = np.arange(6) < np.array([[6], [2]])
    frames = np.zeros((2, 6, 4, 4, 3), np.uint8)
    for own in (masks, masks[1:]):
        rows = prompts.prefixes(TOKENIZER, SHORT, layout, frames[: len(own)], own, None)
        assert rows.tokens.shape == (len(own), prompts.MULTIPLE)
        told = prompts.prefix_length(TOKENIZER, SHORT, layout, own)
        assert told == (rows.segments == 0).sum(axis=1).max()


def test_few_numbers_of_questions_are_compiled():
    sizes = [prompts.batch_size(n) for n in range(1, 200)]
    assert all(n <= size <= 1.5 * n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 17 and sizes[:6] == [1, 2, 3, 4, 6, 6]
