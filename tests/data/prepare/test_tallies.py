"""Counts and lengths of a report."""

import pytest

from rvllm_jax.data.prepare.tallies import OTHER, describe_videos, spread
from rvllm_jax.types import VideoInfo


@pytest.mark.parametrize(
    "values",
    [[1, 2, 2, 9], [5], [0.5, 0.25, 7.0], list(range(500)), [1.0] * 50 + [5000.0], [0, 0]],
)
def test_a_histogram_counts_every_value_once_in_a_bin_that_holds_it(values):
    found = spread(values)
    assert (found["min"], found["max"], found["count"]) == (min(values), max(values), len(values))
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    edges = found["edges"]
    assert sum(found["histogram"]) == len(values) and len(edges) == len(found["histogram"]) + 1
    for number, count in enumerate(found["histogram"]):
        last = number == len(found["histogram"]) - 1
        low, high = edges[number], edges[number + 1]
        assert count == sum(low <= v < high or (last and v == high) for v in values)


def test_bins_grow_where_one_value_is_far_out():
    found = spread([float(v) for v in range(1, 101)] + [100_000.0])
    assert sum(count > 0 for count in found["histogram"]) > 3
    assert spread([]) == {"count": 0}


def test_videos_of_unknown_length_are_counted_apart():
    known = VideoInfo("h264", 640, 360, 25.0, 250, 10.0, 1000)
    unknown = VideoInfo("gif", 64, 36, 0.0, 0, 0.0, 500)
    found = describe_videos({"a": known, "b": known, "c": unknown})
    assert found["seconds"]["count"] == 2 and found["without_duration"] == 1
    assert found["hours"] == pytest.approx(20 / 3600) and found["bytes"] == 2500
    assert found["fps"] == {"25": 2, "unknown": 1}
    assert found["sizes"] == {"640 x 360": 2, "64 x 36": 1}
    assert found["codecs"] == {"h264": 2, "gif": 1}


def test_rare_values_are_counted_together():
    files = {
        str(n): VideoInfo("h264", n + 2, 2, 25.0, 1, 1.0, 1) for n in range(30)
    } | {"again": VideoInfo("h264", 31, 2, 25.0, 1, 1.0, 1)}  # fmt: skip
    sizes = describe_videos(files)["sizes"]
    assert list(sizes)[0] == "31 x 2" and list(sizes)[-1] == OTHER
    assert sum(sizes.values()) == 31 and len(sizes) == 13
