import collections
import re

import numpy as np
import pytest

from rvllm_jax.data import shapes, shapes_scene


def turns(record):
    """(type, question, answer) of each pair of turns."""
    pairs = record["conversations"]
    return [
        (ask["type"], ask["value"].removeprefix("<video>\n"), reply["value"])
        for ask, reply in zip(pairs[::2], pairs[1::2], strict=True)
    ]


@pytest.fixture(scope="module")
def full():
    """Scenes and records of the full-size splits, not rendered."""
    options = shapes.Options()
    return {
        split: [shapes.draw_clip(options, split, index) for index in range(count)]
        for split, count in shapes.SIZES.items()
    }


def test_the_text_of_an_existence_question_does_not_tell_its_answer(full):
    asked = collections.defaultdict(list)
    for _, record in full["train"]:
        for kind, question, answer in turns(record):
            if kind == "existence":
                asked[question].append(answer == "yes")
    assert len(asked) == 7 * 4 - len(shapes_scene.HELDOUT)
    for question, answers in asked.items():
        assert 0.35 < np.mean(answers) < 0.65, question


def test_no_caption_is_in_two_splits(full):
    captions = {split: {r["caption"] for _, r in clips} for split, clips in full.items()}
    for split, theirs in captions.items():
        assert len(theirs) > 0.7 * shapes.SIZES[split]
        for other in set(captions) - {split}:
            assert not theirs & captions[other], (split, other)
    assert max(len(caption.split()) for caption in captions["train"]) <= 45


def test_held_out_combinations_are_only_in_the_held_out_split(full):
    for split, clips in full.items():
        for scene, record in clips:
            there = [(s.colour, s.form) in shapes_scene.HELDOUT for s in scene.shapes]
            asked = [
                " ".join(pair) in question
                for kind, question, _ in turns(record)
                for pair in shapes_scene.HELDOUT
                if kind == "existence"
            ]
            if split == "heldout":
                assert there[scene.asked], record["id"]
            else:
                assert not any(there) and not any(asked), record["id"]
    about_it = [
        answer == scene.shapes[scene.asked].colour
        for scene, record in full["heldout"]
        for kind, _, answer in turns(record)
        if kind == "order"
    ]
    assert np.mean(about_it) > 0.6


WORDS = re.compile(
    r"(Then a|A) (?P<colour>\w+) (?P<form>\w+)(?P<late> appears)?.*?"
    r"(moves (?P<direction>\w+)|stays still)(?P<rest>[^.]*)\."
)


def read_caption(caption):
    """A reader who sees the caption only."""
    sentences = list(WORDS.finditer(caption))
    late = [match["late"] is not None for match in sentences]
    colours = [match["colour"] for match in sentences]
    order = {"vanishes first": [c for c, m in zip(colours, sentences, strict=True)
                                if "vanishes first" in m["rest"]]}  # fmt: skip
    if late.count(False) == 1:
        order["appears first"] = [colours[late.index(False)]]
    if late[-1]:
        order["appears last"] = [colours[-1]]
    return sentences, order


def answer_from(caption, kind, question):
    sentences, order = read_caption(caption)
    by_colour = {match["colour"]: match for match in sentences}
    words = question.rstrip("?").split()
    if kind == "colour":
        return next(match["colour"] for match in sentences if match["form"] == words[-1])
    if kind == "form":
        return by_colour[words[-1]]["form"]
    if kind == "number":
        return caption.split()[0].lower()
    if kind == "direction":
        return by_colour[words[-1]]["direction"] or "nowhere"
    if kind == "order":
        return order[" ".join(words[2:])][0]
    return "yes" if " ".join(words[-2:]) in caption else "no"


def test_every_question_can_be_answered_from_the_caption(full):
    for split, record in [(split, r) for split, clips in full.items() for _, r in clips]:
        for kind, question, answer in turns(record):
            if kind == "caption":
                assert split == "train" and answer == record["caption"]
                continue
            told = answer_from(record["caption"], kind, question)
            assert told == answer, (record["caption"], question, answer)
            assert answer.isalpha() and answer.islower()
