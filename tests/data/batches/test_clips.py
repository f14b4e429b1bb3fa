"""Which frames and which crop a clip takes: policies, times, random starts."""

import itertools

import numpy as np
import pytest

from rvllm_jax.data.batches import clips
from rvllm_jax.data.batches.clips import LONG, SHORT, FrameSampling

POLICIES = list(itertools.product(SHORT, LONG))


def constant(rng, count):
    """Times of `count` frames at a constant rate, rounded as containers round them."""
    rate = rng.choice([8, 100 / 13, 24000 / 1001, 25, 30, 60]) / rng.integers(1, 7)
    tick = rng.choice([1e-3, 1 / 90000, 1e-9])
    return rng.uniform(0, 5) + np.rint(np.arange(count) / rate / tick) * tick


def varying(rng, count):
    """Times of `count` frames at a rate that varies by a factor of a hundred."""
    return np.cumsum(np.exp(rng.uniform(-2.3, 2.3, count))) / 25


def cases(number=300, times=varying, longest=400):
    """Random videos and samplings: (rng, times, sampling)."""
    for seed in range(number):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 12 if seed % 3 == 0 else longest))
        frames = int(rng.choice([1, 2, 6, 25, 100, 199, 200, rng.integers(1, 40)]))
        sampling = FrameSampling(frames, int(rng.integers(1, 8)), *POLICIES[seed % len(POLICIES)])
        yield rng, times(rng, count), sampling


def counted(num_stored, frames, step, rng):
    """Clips chosen by counting frames, which is right at a constant rate: the reference."""
    count = min(frames, -(-num_stored // step))
    free = num_stored - ((count - 1) * step + 1)
    start = free // 2 if rng is None else int(rng.integers(free + 1))
    return start + step * np.arange(count, dtype=np.int32)


def test_at_a_constant_rate_clips_are_those_of_counting_frames():
    seen = 0
    for seed, (_, times, sampling) in enumerate(cases(times=constant)):
        fits = len(times) > (sampling.frames - 1) * sampling.step
        if sampling.long == "spread" and fits or sampling.short != "pad" and not fits:
            continue
        ours, reference = (np.random.default_rng(seed) for _ in range(2))
        for generators in ((None, None), *[(ours, reference)] * 5):
            found = clips.choose(times, sampling, generators[0])
            expected = counted(len(times), sampling.frames, sampling.step, generators[1])
            assert found.dtype == expected.dtype and found.tolist() == expected.tolist()
        assert ours.bit_generator.state == reference.bit_generator.state
        seen += 1
    assert seen > 60


@pytest.mark.parametrize("times", [constant, varying])
def test_a_clip_is_as_long_as_its_policy_says_and_goes_forward(times):
    for rng, shown, sampling in cases(times=times):
        for generator in (None, rng, rng):
            indices = clips.choose(shown, sampling, generator)
            assert indices.dtype == np.int32 and len(indices) == sampling.filled(len(shown))
            assert 0 <= indices.min() <= indices.max() < len(shown)
            single_pass = min(sampling.frames, -(-len(shown) // sampling.step))
            fits = len(shown) > (sampling.frames - 1) * sampling.step
            if sampling.short != "pad" or fits:
                assert len(indices) == sampling.frames
            if sampling.short == "loop" and not fits:
                assert (indices == np.resize(indices[:single_pass], sampling.frames)).all()
                indices = indices[:single_pass]
            assert (np.diff(shown[indices]) >= 0).all()
    assert FrameSampling(6, 2).filled(3) == 2  # padded, unless told otherwise


def test_each_frame_is_the_nearest_to_its_wanted_time():
    for rng, times, _ in cases():
        if len(times) == 1:
            continue
        places = rng.uniform(-1, len(times), 20)
        wanted = times[0] + places * (times[-1] - times[0]) / (len(times) - 1)
        found = clips.nearest(times, places)
        distances = abs(times[:, None] - wanted)
        np.testing.assert_allclose(abs(times[found] - wanted), distances.min(0), atol=1e-5)
    assert clips.nearest(np.arange(4) / 3, np.array([0.5, 1.5, 2.5])).tolist() == [0, 1, 2]
    with np.errstate(all="raise"):  # a single frame has no rate
        assert clips.nearest(np.array([7.0]), np.array([0.0, 3.0])).tolist() == [0, 0]


def test_frames_of_a_window_lie_one_interval_apart_in_time():
    """Interval k is k / the average rate in seconds, whatever the single distances are."""
    for rng, times, sampling in cases():
        if not sampling.free(len(times)):
            continue
        start = int(rng.integers(sampling.free(len(times)) + 1))
        indices = clips.nearest(times, sampling.places(len(times), start))
        rate = (len(times) - 1) / (times[-1] - times[0])
        single_pass = np.arange(min(sampling.frames, -(-len(times) // sampling.step)))
        wanted = times[0] + start / rate + single_pass * (sampling.step / rate)
        assert wanted[-1] <= times[-1] + 1e-9
        found = indices[: len(wanted)]
        nearest = abs(times[:, None] - wanted).min(0)
        np.testing.assert_allclose(abs(times[found] - wanted), nearest, atol=1e-5)


def test_choices_do_not_depend_on_the_unit_or_the_origin_of_time():
    for seed, (rng, times, sampling) in enumerate(cases(150)):
        scaled = times * rng.uniform(0.01, 100) + rng.uniform(-50, 50)
        for generators in ((None, None), [np.random.default_rng(seed) for _ in range(2)]):
            ours, theirs = (
                clips.choose(t, sampling, g)
                for t, g in zip((times, scaled), generators, strict=True)
            )
            assert ours.tolist() == theirs.tolist()


def test_a_stretched_or_spread_clip_covers_the_whole_video_evenly():
    checked = 0
    for rng, times, sampling in cases(times=constant):
        if sampling.free(len(times)) is not None:
            continue
        part = len(times) / sampling.frames
        for generator in (None, rng):
            indices = clips.choose(times, sampling, generator)
            # One in each of T equal parts of the video.
            bounds = np.arange(sampling.frames) * part
            assert (indices >= bounds - 1).all() and (indices <= bounds + part).all()
        checked += 1
    assert checked > 60


def test_random_starts_cover_every_place_and_the_centred_one_is_in_the_middle():
    rng = np.random.default_rng(1)
    times, sampling = np.arange(12) / 25, FrameSampling(3, 4)
    starts = [clips.choose(times, sampling, rng)[0] for _ in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 4  # 12 frames leave starts 0 to 3 for a span of 9
    assert (abs(counts - 1000) < 150).all()
    assert clips.choose(times, sampling, None).tolist() == [1, 5, 9]
    stretched = FrameSampling(4, 8, short="stretch")
    firsts = np.bincount([clips.choose(times, stretched, rng)[0] for _ in range(3000)])
    assert len(firsts) == 3 and (abs(firsts - 1000) < 150).all()  # of a part of three frames


def test_random_starts_are_uniform_in_time_where_the_rate_varies():
    times = np.concatenate([np.arange(90) / 90, 1 + np.arange(10)])  # 1 s at 90, 10 s at 1
    rng = np.random.default_rng(2)
    starts = np.array(
        [times[clips.choose(times, FrameSampling(1, 1), rng)[0]] for _ in range(2000)]
    )
    early = (starts < 1).mean()  # nine frames in ten, a tenth of the time
    assert 0.07 < early < 0.18


def test_crop_box_is_uniform_or_centred_and_refuses_what_does_not_fit():
    rng = np.random.default_rng(2)
    boxes = {clips.crop_box(6, 9, 4, rng) for _ in range(500)}
    assert boxes == {(y, x) for y in range(3) for x in range(6)}
    assert clips.crop_box(6, 9, 4, None) == (1, 2)
    with pytest.raises(ValueError, match=r"10 x 10 .* 9 x 30 .*smaller crop"):
        clips.crop_box(9, 30, 10, rng)


def test_policies_that_do_not_exist_are_refused_by_key():
    with pytest.raises(ValueError, match=r"config\.data\.short is 'cut'; expected .*'stretch'"):
        FrameSampling(4, 1, short="cut")
    with pytest.raises(ValueError, match=r"config\.data\.long is 'all'; expected .*'spread'"):
        FrameSampling(4, 1, long="all")
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match=r"both must be at least 1"):
            FrameSampling(*numbers)


def views_of(times, sampling, views="25x1", height=16, width=24, crop=10):
    return clips.evaluation_views(times, height, width, sampling=sampling, crop=crop, views=views)


def expanded(views):
    """All 25, those that are the same repeated."""
    return [view for view in views for _ in range(view.count)]


@pytest.mark.parametrize("views", ["25x1", "5x5"])
def test_test_clips_are_25_and_each_that_differs_comes_once(views):
    repeated = 0
    for rng, times, sampling in cases(150):
        side = int(rng.choice([10, 16]))
        found = views_of(times, sampling, views, height=16, width=side + 6, crop=side)
        assert sum(view.count for view in found) == 25 and min(v.count for v in found) >= 1
        keys = {(view.indices.tobytes(), view.box) for view in found}
        assert len(keys) == len(found)
        repeated += len(found) < 25
        for view in found:
            assert len(view.indices) == sampling.filled(len(times)) and not view.flip
            y, x, size = view.box
            assert size == side and 0 <= y <= 16 - side and 0 <= x <= 6
    assert 20 < repeated < 150


@pytest.mark.parametrize(("views", "number"), [("25x1", 25), ("5x5", 5)])
def test_starts_are_spread_evenly_from_the_first_to_the_last(views, number):
    for _, times, sampling in cases(times=constant):
        free = sampling.free(len(times))
        if free is None:
            continue
        every = expanded(views_of(times, sampling, views))[:: 25 // number]
        starts = np.array(sorted(view.indices[0] for view in every))
        assert (starts[0], starts[-1]) == (0, free)
        assert (abs(starts - np.linspace(0, free, number)) <= 0.5 + 1e-9).all()


def test_without_a_free_start_the_offsets_lie_within_one_sampling_step():
    for views, number in (("25x1", 25), ("5x5", 5)):
        for sampling in (FrameSampling(4, 50, short="stretch"), FrameSampling(4, 2, long="spread")):
            every = expanded(views_of(np.arange(100) / 30, sampling, views))[:: 25 // number]
            firsts = np.array([view.indices[0] for view in every])
            step = 100 / 4
            expected = (np.arange(number) + 0.5) * step / number - 0.5
            assert (abs(firsts - expected) <= 0.5).all()
            assert all((np.diff(view.indices) == step).all() for view in every)
    # A clip of all frames and a video of one leave nothing to shift.
    for count, sampling in ((31, FrameSampling(6, 6)), (1, FrameSampling(100, 6, short="stretch"))):
        [only] = views_of(np.arange(count) / 30, sampling)
        assert only.count == 25


def test_the_middle_test_clip_is_the_centred_one():
    for _, times, sampling in cases():
        middle = expanded(views_of(times, sampling))[12]
        centred = clips.choose(times, sampling, None)
        assert middle.indices.tolist() == centred.tolist()
        assert middle.box == (*clips.crop_box(16, 24, 10, None), 10)
        [only] = views_of(times, sampling, "1x1")
        assert only._replace(indices=()) == middle._replace(indices=(), count=1)
        assert only.indices.tolist() == centred.tolist()


def test_five_crops_are_the_centre_and_the_four_corners_of_each_start():
    views = views_of(np.arange(100) / 30, FrameSampling(4, 6), "5x5")
    corners = [(3, 7, 10), (0, 0, 10), (0, 14, 10), (6, 0, 10), (6, 14, 10)]
    assert [view.box for view in views] == corners * 5
    assert len({view.indices.tobytes() for view in views}) == 5
    square = views_of(np.arange(100) / 30, FrameSampling(4, 6), "5x5", height=10, width=10)
    assert [view.count for view in square] == [5] * 5
    assert {view.box for view in views_of(np.arange(9), FrameSampling(4, 6))} == {corners[0]}


def test_unknown_test_clips_and_crops_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'10x3' are unknown; expected one of .*'5x5'"):
        views_of(np.arange(9), FrameSampling(4, 6), "10x3")
    with pytest.raises(ValueError, match="a crop of 17 x 17 pixels does not fit"):
        views_of(np.arange(9), FrameSampling(4, 6), crop=17)
