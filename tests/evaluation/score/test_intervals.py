import numpy as np
import pytest

from rvllm_jax.evaluation.score import intervals


def drawn_one_by_one(values, videos, resamples, seed):
    """The interval as its text says it: videos drawn with replacement, the mean of their values."""
    names = sorted(set(videos))
    of = {name: [v for v, video in zip(values, videos, strict=True) if video == name]
          for name in names}  # fmt: skip
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        chosen = rng.choice(len(names), len(names))
        means.append(np.mean([v for place in chosen for v in of[names[place]]]))
    return np.percentile(means, [2.5, 97.5])


def test_the_interval_is_that_of_videos_drawn_one_by_one():
    rng = np.random.default_rng(1)
    videos = [f"v{n}" for n in rng.integers(0, 20, 90)]
    values = rng.random(90) + np.array([int(v[1:]) % 3 for v in videos])
    found = intervals.mean(values, videos, resamples=4000)
    assert found.value == pytest.approx(values.mean()) and found.n == 90
    low, high = drawn_one_by_one(values, videos, 4000, 7)
    width = high - low
    assert max(abs(found.low - low), abs(found.high - high)) < 0.05 * width


def test_questions_of_one_video_count_as_one_draw():
    """Ten equal answers a video tell no more than one."""
    rng = np.random.default_rng(2)
    once = rng.random(40) < 0.5
    names = [f"v{n}" for n in range(40)]
    single = intervals.mean(once, names)
    tenfold = intervals.mean(np.repeat(once, 10), np.repeat(names, 10))
    apart = intervals.mean(np.repeat(once, 10), [str(n) for n in range(400)])
    assert tenfold[:3] == pytest.approx(single[:3])
    assert (apart.high - apart.low) < 0.5 * (tenfold.high - tenfold.low)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        right = rng.random(60) < 0.6
        found = intervals.mean(np.repeat(right, 3), np.repeat(np.arange(60), 3).astype(str),
                               resamples=300)  # fmt: skip
        inside += found.low <= 0.6 <= found.high
    assert 0.87 <= inside / 200 <= 0.99


def test_a_seed_names_the_draws_and_parts_do_not_matter(monkeypatch):
    values, videos = [0, 1, 1, 0, 1.0], list("aabbc")
    whole = intervals.mean(values, videos, resamples=500, seed=4)
    assert intervals.mean(values, videos, resamples=500, seed=4) == whole
    assert intervals.mean(np.array(values) + 0.001 * np.arange(5), videos, seed=4) != whole
    monkeypatch.setattr(intervals, "_CELLS", 30)
    assert intervals.mean(values, videos, resamples=500, seed=4) == whole


def test_without_spread_and_without_videos():
    assert intervals.mean([1, 0], ["a", "a"]) == (0.5, None, None, 2)
    assert intervals.mean([], []) == (None, None, None, 0)
    assert intervals.mean([True] * 3, list("abc")) == (1.0, 1.0, 1.0, 3)


def test_what_is_refused():
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        intervals.mean([1, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match="2 values of 1 videos"):
        intervals.mean([1, 2], ["a"])
