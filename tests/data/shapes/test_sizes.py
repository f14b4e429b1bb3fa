"""The embedded dataset is as large and as varied as is promised, in literal numbers."""

from rvllm_jax.data.shapes import build, scene


def test_splits_are_large_enough_to_measure_on():
    assert set(build.SIZES) == {"train", "validation", "test", "heldout"}
    assert build.SIZES["test"] >= 500
    assert build.SIZES["heldout"] >= 300


def test_there_are_six_colours_and_four_forms_at_least():
    assert len(set(scene.COLOURS.values())) == len(scene.COLOURS) >= 6
    assert len(set(scene.FORMS)) == len(scene.FORMS) >= 4


def test_shapes_move_in_four_directions_at_least_and_some_stay_still():
    ways = list(scene.DIRECTIONS.values())
    assert len(set(ways)) == len(ways)
    assert ways.count((0, 0)) == 1
    assert {(-1, 0), (1, 0), (0, -1), (0, 1)} <= set(ways)


def test_heldout_combinations_are_of_known_colours_and_forms():
    colours, forms = zip(*scene.HELDOUT, strict=True)
    assert len(scene.HELDOUT) >= 4
    assert set(colours) <= set(scene.COLOURS) and set(forms) <= set(scene.FORMS)


def test_a_clip_shows_one_to_three_shapes():
    options = build.ShapesOptions()
    counts = {len(build.draw_clip(options, "test", index)[0].shapes) for index in range(30)}
    assert counts == {1, 2, 3}
