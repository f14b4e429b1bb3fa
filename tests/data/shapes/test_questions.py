import collections
import re

import pytest

from rvllm_jax.data.shapes import build
from rvllm_jax.data.shapes import scene as shapes_scene


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
    options = build.ShapesOptions()
    return {
        split: [build.draw_clip(options, split, index) for index in range(count)]
        for split, count in build.SIZES.items()
    }


def test_no_caption_is_in_two_splits(full):
    captions = {split: {r["caption"] for _, r in clips} for split, clips in full.items()}
    for split, theirs in captions.items():
        assert len(theirs) > 0.7 * build.SIZES[split]
        for other in set(captions) - {split}:
            assert not theirs & captions[other], (split, other)
    assert max(len(caption.split()) for caption in captions["train"]) <= 45


def test_held_out_combinations_are_only_in_the_held_out_split(full):
    for split, clips in full.items():
        for scene, record in clips:
            there = [(s.colour, s.form) in shapes_scene.HELDOUT for s in scene.shapes]
            if split != "heldout":
                assert not any(there), record["id"]
                continue
            shape = scene.shapes[scene.asked]
            assert there[scene.asked], record["id"]
            for kind, question, answer in turns(record):
                about = {"colour": shape.form, "form": shape.colour, "direction": shape.colour}
                assert kind not in about or question.endswith(about[kind]), record["id"]
                assert kind != "order" or answer == shape.colour, record["id"]


def test_every_shape_is_asked_for_its_colour_form_and_direction(full):
    for split in ("train", "validation", "test"):
        for scene, record in full[split]:
            kinds = collections.Counter(kind for kind, _, _ in turns(record))
            count = len(scene.shapes)
            assert kinds["number"] == 1
            assert kinds["colour"] == kinds["form"] == kinds["direction"] == count
            assert (kinds["order"] >= 1) == (count > 1), record["id"]


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
    words = question.split()
    if kind == "colour":
        return next(match["colour"] for match in sentences if match["form"] == words[-1])
    if kind == "form":
        return by_colour[words[-1]]["form"]
    if kind == "number":
        return caption.split()[0].lower()
    if kind == "direction":
        return by_colour[words[-1]]["direction"] or "still"
    if kind == "order":
        return order[" ".join(words[2:])][0]
    raise AssertionError(kind)


def test_every_question_can_be_answered_from_the_caption(full):
    for split, record in [(split, r) for split, clips in full.items() for _, r in clips]:
        for kind, question, answer in turns(record):
            if kind == "caption":
                assert split == "train" and answer == record["caption"]
                continue
            told = answer_from(record["caption"], kind, question)
            assert told == answer, (record["caption"], question, answer)
            assert answer.isalpha() and answer.islower()
