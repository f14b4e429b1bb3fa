"""The texts about a scene: its caption, and questions with one-word answers."""

from rvllm_jax.data.shapes.scene import ORDERS, Scene, Shape
from rvllm_jax.system.fingerprint import digest

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
        predicate = " and ".join(filter(None, (", ".join(deeds[:-1]), deeds[-1])))
        sentences.append(f"{article} {shape.colour} {shape.form} {predicate}.")
    return " ".join(sentences)


def _deeds(shape: Shape) -> list[str]:
    deeds = ["appears"] if shape.appears > 0 else []
    deeds.append("stays still" if shape.direction == "still" else f"moves {shape.direction}")
    return deeds + (["stops"] if shape.stops < shape.vanishes else [])


def caption_split(text: str) -> str:
    """The one of train, validation and test that may hold this caption, decided by its hash.

    So no caption of one split is ever seen in another, however many clips each has.
    """
    bucket = int(digest([text], 2), 16) % 10
    return "validation" if bucket == 0 else "test" if bucket < 3 else "train"


def questions(scene: Scene, *, heldout: bool) -> list[tuple[str, str, str]]:
    """(type, question, answer) triples about every shape; in the held-out split about the shape
    `asked` alone, which is the held-out combination.

    A question is a phrase that ends in the word to look for: a decoder that learns its language in
    half a minute learns to look up its last word, and hardly one before it.
    """
    triples = [("number", "Number of shapes", NUMBERS[len(scene.shapes) - 1])]
    for number, shape in enumerate(scene.shapes):
        if heldout and number != scene.asked:
            continue
        triples += [
            ("colour", f"Colour of the {shape.form}", shape.colour),
            ("form", f"Form of the {shape.colour}", shape.form),
            ("direction", f"Direction of the {shape.colour}", shape.direction),
        ]
    holders = {order: scene.holder(order) for order in ORDERS if len(scene.shapes) > 1}
    triples += [
        ("order", f"Colour that {order}", scene.shapes[holder].colour)
        for order, holder in holders.items()
        if holder is not None and (not heldout or holder == scene.asked)
    ]
    return triples
