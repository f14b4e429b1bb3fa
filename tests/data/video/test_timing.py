"""Files of variable rate are sampled in time."""

from fractions import Fraction

import av
import numpy as np
import pytest

from rvllm_jax.data.batches import clips
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import decode
from rvllm_jax.data.video.timing import Rate, at_even_times, is_variable, measure_rate


def picked(times, start, step, most=10**9):
    assert not times or times[0] == start
    return list(at_even_times(((time, time) for time in times), step, most))


def test_the_nearest_frame_is_picked_for_every_time():
    rng = np.random.default_rng(0)
    for _ in range(200):
        times = np.cumsum(rng.exponential(1, rng.integers(1, 60)))
        step = float(rng.uniform(0.2, 4))
        found = picked(times.tolist(), times[0], step)
        wanted = times[0] + step * np.arange(len(found))
        np.testing.assert_allclose([time for _, time in found], wanted)
        assert wanted[-1] <= times[-1] + 0.1 * step < wanted[-1] + step + 1e-5
        distance = np.abs(times[None] - wanted[:, None])
        frames = np.array([frame for frame, _ in found])
        np.testing.assert_allclose(np.abs(frames - wanted), distance.min(1), atol=1e-5)


def test_a_constant_rate_gives_every_stride_th_frame():
    for rate in (30, 25, 24000 / 1001):
        times = np.round(np.arange(100) / rate, 3)  # milliseconds, as webm has them
        for stride in (1, 2, 6):
            found = picked(times.tolist(), 0.0, stride / rate)
            assert [frame for frame, _ in found] == times[::stride].tolist()


def test_there_are_no_more_times_than_allowed():
    assert len(picked([0.0, 1e9], 0.0, 0.001, most=7)) == 7
    assert picked([], 0.0, 1.0) == []


def test_which_rates_are_variable():
    assert is_variable(30, 6.1) and is_variable(59.94, 29.97)
    assert not is_variable(30, 29.97) and not is_variable(25, 25)
    assert not is_variable(0, 25) and not is_variable(90000, 0)


def test_the_rate_is_that_of_all_packets_where_it_varies():
    uneven = np.r_[np.arange(60) / 30, 2 + np.arange(100) / 5]
    fps, frames = measure_rate([(t, 0.2) for t in uneven], 30.0)
    assert frames == 160 and fps == pytest.approx(160 / 22)
    assert measure_rate([(t, 0.0) for t in uneven], 0.0).uneven == 160  # FFmpeg knows no rate


def test_packets_out_of_order_rounded_or_one_short_have_a_constant_rate():
    times = np.round(np.arange(900) * 1001 / 30000, 3)  # milliseconds, as webm has them
    order = np.argsort(np.arange(900) + np.random.default_rng(0).integers(0, 16, 900))  # B frames
    rate = 30000 / 1001
    assert measure_rate([(t, 0.0) for t in times[order]], rate) == Rate(rate, 0)
    assert measure_rate([(t, 0.0) for t in np.delete(times, 400)], rate) == Rate(rate, 0)
    assert measure_rate([(t, 0.0) for t in np.repeat(times, 2)], rate) == Rate(rate, 0)  # fields
    fps, frames = measure_rate([(t, 0.0) for t in times], 25.0)  # FFmpeg was mistaken
    assert frames == 900 and fps == pytest.approx(rate, rel=1e-4)


def test_times_that_jump_or_are_missing_tell_no_rate():
    times = [(t, 0.0) for t in np.arange(200) / 25]
    assert measure_rate([*times, *times], 25.0) is None
    assert measure_rate([*times, (9000.0, 0.0)], 25.0, longest=10.0) is None
    assert measure_rate([*times, (9000.0, 0.0)], 25.0).uneven == 201
    assert measure_rate([*times[:90], (None, 0.0), *times[90:]], 25.0) is None
    assert measure_rate([(1e6 * t, 0.0) for t, _ in times], 25.0) is None  # a frame in eleven hours
    assert measure_rate(times[:1], 25.0) is None and measure_rate([], 25.0) is None


CONTAINERS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "ts": "libx264",
              "flv": "libx264"}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_of_variable_rate_is_sampled_in_time_in_every_container(probe, tmp_path, container):
    """FFmpeg's average is 30 frames a second in all but mp4: it sees the first packets."""
    times = np.r_[np.arange(60) / 30, 2 + np.arange(100) / 5]
    path = write_grey(tmp_path / f"a.{container}", times, CONTAINERS[container])
    rate = probe(path).fps
    assert rate == pytest.approx(160 / 22, rel=0.03)  # mp4: the last lasts nothing
    found = list(decode.Decoding(path, stride=6))
    stored = np.array([time for _, time in found])
    np.testing.assert_allclose(np.diff(stored), 6 / rate, rtol=1e-6)
    assert 22 - 2 * 6 / rate < stored[-1] - stored[0] <= 22
    greys = np.array([frame.mean() for frame, _ in found])
    assert (np.abs((greys - 10) / 10 - (stored - stored[0])) < 0.1 + 0.2).all()  # to the nearest


@pytest.mark.parametrize("container", CONTAINERS)
def test_of_a_constant_rate_every_stride_th_frame_is_taken_in_every_container(
    probe, tmp_path, container
):
    times = np.arange(110) / 30
    path = write_grey(tmp_path / f"a.{container}", times, CONTAINERS[container])
    every = list(decode.Decoding(path))
    some = list(decode.Decoding(path, stride=6))
    assert [time for _, time in some] == [time for _, time in every][::6]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(some, every[::6], strict=True))
    assert probe(path).fps == 30


def write_grey(path, times, codec="libx264"):
    """A file of frames of 32 pixels at those times, of which the grey tells the time: 10 a second,
    from 10 on."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=30, options={"crf": "4", "b": "1M"})
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for time in times:
            grey = np.full((32, 32, 3), 10 + round(10 * time), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey).reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time * 30), Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Four seconds at 30 frames a second, then sixteen at 2."""
    times = [*np.arange(120) / 30, *(4 + np.arange(32) / 2)]
    return write_grey(tmp_path_factory.mktemp("uneven") / "a.mp4", times), np.array(times)


@pytest.mark.parametrize("stride", [1, 2, 6])
def test_a_clip_of_a_file_of_variable_rate_is_even_in_time_at_any_stride(
    probe, uneven, tmp_path, stride
):
    path, times = uneven
    assert probe(path).fps == pytest.approx(len(times) / 20, rel=0.1)
    write_store(tmp_path, {"a": path}, StoreOptions(stride=stride, short_side=None))
    store = FrameStore(tmp_path)
    frames, step = 8, 12 // stride  # an interval of 12 of the file's frames
    rate = store.entries["a"].fps * stride
    assert rate == pytest.approx(probe(path).fps, rel=0.1 if stride == 1 else 1e-6)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sizes = dict(sampling=clips.FrameSampling(frames, step), crop=32)
        clip, mask = clips.load_clip(store, "a", **sizes, rng=rng)
        shown = (clip.mean((1, 2, 3)) - 10) / 10  # seconds
        assert mask.all()
        # The file has a frame every half second: nearer than a quarter one cannot be. What is
        # stored may be as far from what is wanted as from what it was stored for.
        wanted = shown[0] + 12 / rate * np.arange(frames)
        assert (np.abs(shown - wanted) < (0.3 if stride == 1 else 0.55) + 0.25).all(), shown
