import collections
import json

import numpy as np
import pytest

from rvllm_jax.data.shapes import build, questions
from rvllm_jax.data.shapes import scene as shapes_scene
from rvllm_jax.data.video import decode

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y downwards


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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with rendered clips, and the records of each split."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = build.build(folder, sizes={"train": 60, "test": 40, "heldout": 40})
    return folder, {split: json.loads(path.read_text()) for split, path in paths.items()}


def test_what_is_asked_shows_in_any_window_of_31_frames(full):
    for clips in full.values():
        for scene, _ in clips:
            assert scene.frames == 34 and 1 <= len(scene.shapes) <= 3
            assert len({s.form for s in scene.shapes}) == len(scene.shapes)
            assert len({s.colour for s in scene.shapes}) == len(scene.shapes)
            for shape in scene.shapes:
                assert shape.vanishes - shape.appears >= 16
                assert shape.appears == 0 or shape.appears >= 4
                assert shape.vanishes == 34 or shape.vanishes <= 27
            for times in ([s.appears for s in scene.shapes], [s.vanishes for s in scene.shapes]):
                distinct = sorted(set(times))
                assert all(b - a >= 6 for a, b in zip(distinct, distinct[1:], strict=False))


def seen(folder, record):
    """Of each colour the frames where it shows and its centroids, from the decoded pixels."""
    frames = np.stack([frame for frame, _ in decode.Decoding(folder / "videos" / record["video"])])
    found = {}
    for colour, rgb in shapes_scene.COLOURS.items():
        mask = np.linalg.norm(frames.astype(float) - rgb, axis=-1) < 60
        times = np.nonzero(mask.sum((1, 2)) >= 25)[0]
        if len(times) >= 8:
            places = [np.argwhere(mask[t]).mean(0)[::-1] for t in times]
            found[colour] = (times, np.array(places), mask[times], frames[times])
    return found


def heading(places):
    """The direction in which a trail of (x, y) leads."""
    moved = places[-3:].mean(0) - places[:3].mean(0)
    if np.abs(moved).max() < 3.5:
        return "still"
    return max(WAYS, key=lambda name: np.dot(moved, WAYS[name]))


def form_of(masks):
    """The form that most frames show: edges are soft at this size, so one frame may mislead."""
    votes = collections.Counter()
    for mask in masks:
        rows, columns = np.nonzero(mask)
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        height, width = box.shape
        if width > 1.6 * height:
            votes["bar"] += 1
        elif not box[height // 2, width // 2]:
            votes["ring"] += 1
        elif box.mean() > 0.8:
            votes["square"] += 1
        else:
            votes["cross"] += 1
    return votes.most_common(1)[0][0]


def test_answers_are_true_of_the_decoded_pixels(built):
    folder, records = built
    counts = collections.Counter()
    for record in [*records["test"], *records["heldout"]]:
        found = seen(folder, record)
        first = {colour: times[0] for colour, (times, *_) in found.items()}
        last = {colour: times[-1] for colour, (times, *_) in found.items()}
        for kind, question, answer in turns(record):
            words = question.rstrip("?").split()
            if kind == "number":
                told = questions.NUMBERS[len(found) - 1]
            elif kind == "direction":
                told = heading(found[words[-1]][1])
            elif kind == "order":
                pick, times = {
                    "appears first": (min, first), "appears last": (max, first),
                    "vanishes first": (min, last),
                }[" ".join(words[2:])]  # fmt: skip
                told = pick(times, key=times.get)
            elif kind == "form" and len(found) == 1:
                told = form_of(found[words[-1]][2])
            else:
                continue
            counts[kind] += 1
            assert told == answer, (record["id"], record["caption"], question, answer)
    assert counts["number"] == 80 and counts["direction"] > 100
    assert counts["order"] > 40 and counts["form"] > 20


def test_colours_survive_compression(built):
    folder, records = built
    checked = set()
    for record in records["train"][::3]:  # the clips of one shape
        for colour, (_, _, masks, frames) in seen(folder, record).items():
            pixels = frames[masks]
            difference = np.abs(np.median(pixels, axis=0) - shapes_scene.COLOURS[colour])
            assert difference.max() < 20, (record["id"], colour)
            assert (
                masks.sum((1, 2)).mean() > 40
            )  # drawn large: a bar covers 59 pixels, soft edges included
            checked.add(colour)
    assert len(checked) >= 6


def test_shapes_on_screen_together_rarely_touch(full):
    gaps = []
    for number, (scene, _) in enumerate(full["test"][:150]):
        centres = shapes_scene.place(np.random.default_rng(number), scene)
        assert centres.min() >= 6.4 and centres.max() <= 29.6
        for i, one in enumerate(scene.shapes):
            for j, other in enumerate(scene.shapes[:i]):
                both = slice(max(one.appears, other.appears), min(one.vanishes, other.vanishes))
                apart = np.abs(centres[i, both] - centres[j, both]).max(-1)
                gaps.append(apart.min(initial=np.inf))
    assert min(gaps) > 5 and np.mean(np.array(gaps) > 11) > 0.85
