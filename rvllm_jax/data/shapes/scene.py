"""Scenes of the embedded dataset: which shapes are when and where, and how they look.

Times are drawn on a clip of 34 frames and lengths on a picture of 36 pixels, then scaled. Whatever
is asked shows in any 31 of the 34 frames, read at every sixth: a shape is visible for at least 16
frames and moves by 13 pixels or more, events lie 6 or more frames apart, none in the first or last
frames.
"""

import dataclasses

import numpy as np

COLOURS = {
    "red": (235, 25, 25), "green": (20, 190, 40), "blue": (45, 75, 255), "yellow": (245, 225, 20),
    "purple": (205, 40, 225), "cyan": (30, 220, 230), "white": (250, 250, 250),
}  # fmt: skip
FORMS = ("ring", "square", "bar", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
HELDOUT = (("red", "ring"), ("blue", "square"), ("yellow", "bar"), ("purple", "cross"))
ORDERS = ("appears first", "appears last", "vanishes first")

CLIP, PICTURE = 34, 36  # the units in which times and lengths are drawn
MIN_VISIBLE = 16
MARGIN, CLEARANCE = 6.5, 12.5  # of a centre to the border, of two centres to each other


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape; visible in frames appears <= t < vanishes, moving until `stops`."""

    colour: str
    form: str
    direction: str
    appears: int
    vanishes: int
    stops: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """Shapes in order of appearance; `asked` is the number of the one that questions are about."""

    shapes: tuple[Shape, ...]
    asked: int
    frames: int = CLIP

    def holder(self, order: str) -> int | None:
        """The number of the shape that, say, "appears first", or None where no one shape does."""
        vanishing = order.startswith("vanishes")
        times = [shape.vanishes if vanishing else shape.appears for shape in self.shapes]
        extreme = max(times) if order.endswith("last") else min(times)
        if times.count(extreme) > 1 or (vanishing and extreme >= self.frames):
            return None
        return times.index(extreme)


def draw(
    rng: np.random.Generator, count: int, form: str, direction: str, *, heldout: bool, frames: int
) -> Scene:
    """A scene of `count` shapes; the one asked about has the given form and direction.

    In the held-out split that shape is the form's held-out combination; elsewhere none occurs.
    """
    asked = int(rng.integers(count))
    others = rng.permutation([name for name in FORMS if name != form]).tolist()
    forms = others[:asked] + [form] + others[asked : count - 1]
    colours = _draw_colours(rng, forms, asked, heldout)
    appears, vanishes = _draw_times(rng, count)
    shapes = []
    for number in range(count):
        moves = direction if number == asked else str(rng.choice(list(DIRECTIONS)))
        visible = vanishes[number] - appears[number]
        halts = moves != "still" and visible >= 20 and rng.random() < 0.35
        stops = appears[number] + (round(0.6 * visible) if halts else visible)
        times = (round(t * frames / CLIP) for t in (appears[number], vanishes[number], stops))
        shapes.append(Shape(colours[number], forms[number], moves, *times))
    return Scene(tuple(shapes), asked, frames)


def _draw_colours(rng, forms: list[str], asked: int, heldout: bool) -> list[str]:
    while True:
        colours = rng.permutation(list(COLOURS))[: len(forms)].tolist()
        if heldout:
            theirs = next(colour for colour, form in HELDOUT if form == forms[asked])
            if theirs in colours:
                continue
            colours[asked] = theirs
            return colours
        if not any(combination in HELDOUT for combination in zip(colours, forms, strict=True)):
            return colours


def _draw_times(rng, count: int) -> tuple[list[int], list[int]]:
    """First frames (ascending) and one-past-last frames, in units of a clip of 34 frames."""
    while True:
        appears, vanishes = [0] * count, [CLIP] * count
        if count == 1:
            appears[0] = int(rng.choice([0, rng.integers(4, 10)]))
            if rng.random() < 0.5:
                vanishes[0] = int(rng.integers(20, 28))
        else:
            staggered, leaving = [(True, 0), (False, 1), (False, 2), (True, 1), (True, 2)][
                rng.integers(5)
            ]
            if staggered:
                appears[1] = int(rng.integers(7, 13)) if count == 2 else 7
                appears[2:] = [int(rng.integers(13, 15))] * (count - 2)
            leavers = rng.permutation(count)[:leaving]
            first = int(rng.integers(18, 22 if leaving == 2 else 28))
            for leaver, time in zip(leavers, (first, first + 6), strict=False):
                vanishes[leaver] = time
        if all(v - a >= MIN_VISIBLE for a, v in zip(appears, vanishes, strict=True)):
            return appears, vanishes


def place(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Centres `float32[shapes, frames, 2]` (x, y) in picture units, the paths kept apart.

    One shape after another takes the first of 48 random paths that is clear of those before it,
    and the whole is tried again until no two shapes touch while both are visible, or the best of
    30 such tries is taken.
    """
    time = np.arange(scene.frames)
    visible_NT = np.stack([(time >= s.appears) & (time < s.vanishes) for s in scene.shapes])
    best, best_gap = np.zeros(0), -1.0
    for _ in range(30):
        placed, gap = [], np.inf
        for number, shape in enumerate(scene.shapes):
            paths = _random_paths(rng, shape, time, 48 if number else 1)
            gaps = np.full(len(paths), np.inf)
            for other, centres_T2 in enumerate(placed):
                both = visible_NT[number] & visible_NT[other]
                apart = np.abs(paths[:, both] - centres_T2[both]).max(-1)
                gaps = np.minimum(gaps, apart.min(-1, initial=np.inf))
            pick = int(np.argmax(np.minimum(gaps, CLEARANCE)))
            placed.append(paths[pick])
            gap = min(gap, float(gaps[pick]))
        if gap > best_gap:
            best, best_gap = np.stack(placed), gap
        if gap >= CLEARANCE:
            break
    return best


def _random_paths(rng, shape: Shape, time: np.ndarray, tries: int) -> np.ndarray:
    """`float32[tries, frames, 2]`: straight, inside the picture, at an even pace until it stops."""
    progress_T = np.clip((time - shape.appears) / max(shape.stops - shape.appears, 1), 0, 1)
    travel = np.array(DIRECTIONS[shape.direction]) * rng.uniform(13, 17, (tries, 1))
    low = MARGIN - np.minimum(travel, 0)
    high = PICTURE - MARGIN - np.maximum(travel, 0)
    start = rng.uniform(low, high)
    paths = start[:, None] + travel[:, None] * progress_T[None, :, None]
    return paths.astype(np.float32)


def render(rng: np.random.Generator, scene: Scene, size: int) -> np.ndarray:
    """The clip `uint8[frames, size, size, 3]`: anti-aliased shapes over a noisy background."""
    centres_NT2 = place(rng, scene) * (size / PICTURE)
    clip = _background(rng, scene.frames, size)
    axis = np.arange(size, dtype=np.float32) + 0.5
    for shape, centres_T2 in zip(scene.shapes, centres_NT2, strict=True):
        radius = 6.2 * size / PICTURE * rng.uniform(0.95, 1.08)
        shown = slice(shape.appears, shape.vanishes)
        low = np.maximum(centres_T2.min(0) - radius - 1, 0).astype(int)
        high = np.ceil(centres_T2.max(0) + radius + 1).astype(int)
        columns, rows = (slice(*ends) for ends in zip(low, high, strict=True))  # all it crosses
        x = axis[None, None, columns] - centres_T2[shown, 0, None, None]
        y = axis[None, rows, None] - centres_T2[shown, 1, None, None]
        cover = np.clip(0.5 - _distance(shape.form, x, y, radius), 0, 1)[..., None]
        crossed = clip[shown, rows, columns]
        crossed += cover * (np.array(COLOURS[shape.colour], np.float32) - crossed)
    return (clip + 0.5).astype(np.uint8)


def _background(rng, frames: int, size: int) -> np.ndarray:
    """Dark grey, a coarse coloured pattern that stays, and fine noise that changes every frame."""
    cells = -(-size // 6)
    pattern = rng.uniform(-14, 14, (cells, cells, 3)).repeat(6, 0).repeat(6, 1)[:size, :size]
    noise = rng.integers(-8, 9, (frames, size, size, 1), np.int8)
    return noise + (rng.uniform(30, 75) + pattern).astype(np.float32)


def _distance(form: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the form's edge (negative inside), y downwards."""
    if form == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.72 * radius) - 0.28 * radius
    x, y = np.abs(x), np.abs(y)
    if form == "square":
        return np.maximum(x, y) - 0.9 * radius
    bar = np.maximum(x - 1.1 * radius, y - 0.4 * radius)
    if form == "bar":
        return bar
    return np.minimum(bar, np.maximum(y - 1.1 * radius, x - 0.4 * radius))  # "cross": upright
