"""What is said of a scene: its caption, and questions with one-word answers."""

import hashlib

import numpy as np

from rvllm_jax.data.shapes_scene import COLOURS, FORMS, HELDOUT, ORDERS, Scene, Shape

CAPTION_QUESTION = "What happens?"
NUMBERS = ("one", "two", "three")


def caption(scene: Scene) -> str:
    """All that the questions need, shape by shape in order of appearance.

    "Two shapes. A red pole moves left and vanishes first. Then a blue ring appears and stays
    still."
    """
    count = len(scene.shapes)
    leavers = sorted(s.vanishes for s in scene.shapes if s.vanishes < scene.frames)
    sentences = [f"{NUMBERS[count - 1].capitalize()} shape{'s' if count > 1 else ''}."]
    for number, shape in enumerate(scene.shapes):
        article = "A" if shape.appears == 0 or number == 0 else "Then a"
        deeds = _deeds(shape)
        if shape.vanishes < scene.frames:
            rank = ("first", "next")[leavers.index(shape.vanishes)]
            deeds.append("vanishes" if count == 1 else f"vanishes {rank}")
        told = " and ".join(filter(None, (", ".join(deeds[:-1]), deeds[-1])))
        sentences.append(f"{article} {shape.colour} {shape.form} {told}.")
    return " ".join(sentences)


def _deeds(shape: Shape) -> list[str]:
    deeds = ["appears"] if shape.appears > 0 else []
    deeds.append("stays still" if shape.direction == "nowhere" else f"moves {shape.direction}")
    return deeds + (["stops"] if shape.stops < shape.vanishes else [])


def split_of(text: str) -> str:
    """The one of train, validation and test that may hold this caption, decided by its hash.

    So no caption of one split is ever seen in another, however many clips each has.
    """
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return "validation" if bucket == 0 else "test" if bucket < 3 else "train"


def questions(rng: np.random.Generator, scene: Scene, *, exists: bool, heldout: bool) -> list:
    """(type, question, answer) triples about the shape `asked`; some about another one too.

    `exists` is the answer of the existence question. Only the held-out split asks about held-out
    combinations, since elsewhere "no" would always be right.
    """
    shape = scene.shapes[scene.asked]
    asked = [
        ("colour", f"What colour is the {shape.form}?", shape.colour),
        _form(shape),
        ("number", "How many shapes?", NUMBERS[len(scene.shapes) - 1]),
        _direction(shape),
    ]
    if len(scene.shapes) > 1:
        others = [other for other in scene.shapes if other is not shape]
        other = others[rng.integers(len(others))]
        asked += [_form(other), _direction(other), _order(rng, scene, heldout)]
    return asked + [_existence(rng, scene, exists, heldout)]


def _form(shape: Shape) -> tuple[str, str, str]:
    return "form", f"What form is {shape.colour}?", shape.form


def _direction(shape: Shape) -> tuple[str, str, str]:
    return "direction", f"Which way goes {shape.colour}?", shape.direction


def _order(rng, scene: Scene, heldout: bool) -> tuple[str, str, str]:
    holders = {order: scene.holder(order) for order in ORDERS}
    defined = [order for order in ORDERS if holders[order] is not None]
    if heldout:  # about the held-out shape where there is such a question
        defined = [order for order in defined if holders[order] == scene.asked] or defined
    order = defined[rng.integers(len(defined))]
    return "order", f"Which colour {order}?", scene.shapes[holders[order]].colour


def _existence(rng, scene: Scene, exists: bool, heldout: bool) -> tuple[str, str, str]:
    """A false one shares its colour or its form with the shape asked about."""
    shape = scene.shapes[scene.asked]
    colour, form = shape.colour, shape.form
    if not exists:
        present = {(s.colour, s.form) for s in scene.shapes}
        absent = [
            (c, f)
            for c, f in [(colour, f) for f in FORMS] + [(c, form) for c in COLOURS]
            if (c, f) not in present and (heldout or (c, f) not in HELDOUT)
        ]
        same_colour = [pair for pair in absent if pair[0] == colour]
        same_form = [pair for pair in absent if pair[1] == form]
        pairs = same_colour if rng.random() < 0.5 else same_form
        colour, form = pairs[rng.integers(len(pairs))]
    return "existence", f"Is there a {colour} {form}?", "yes" if exists else "no"
