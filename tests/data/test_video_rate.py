"""Files of variable rate are sampled in time."""

from fractions import Fraction

import av
import numpy as np
import pytest

from rvllm_jax.data import clips, video
from rvllm_jax.data.frames import FrameStore, write_store
from rvllm_jax.data.video_rate import EvenTimes, is_variable


def picked(times, start, step, most=10**9):
    even, found = EvenTimes(start, step, most), []
    for time in times:
        found += even.pick(time, time)
    return found + list(even.rest())


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


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Four seconds at 30 frames a second, then sixteen at 2; a frame's grey tells its time."""
    path = tmp_path_factory.mktemp("uneven") / "a.mp4"
    times = [*np.arange(120) / 30, *(4 + np.arange(32) / 2)]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for time in times:
            grey = np.full((32, 32, 3), 10 + round(11 * time), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey).reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time * 30), Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path, np.array(times)


@pytest.mark.parametrize("stride", [1, 2, 6])
def test_a_clip_of_a_file_of_variable_rate_is_even_in_time_at_any_stride(uneven, tmp_path, stride):
    path, times = uneven
    assert video.probe(path).fps == pytest.approx(len(times) / 20, rel=0.1)
    write_store(tmp_path, {"a": path}, stride=stride, short_side=None)
    store = FrameStore(tmp_path)
    frames, step = 8, 12 // stride  # an interval of 12 of the file's frames
    rate = store.entries["a"].fps * stride
    assert rate == pytest.approx(video.probe(path).fps, rel=0.1 if stride == 1 else 1e-6)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sizes = dict(frames=frames, step=step, crop=32)
        clip, mask = clips.load_clip(store, "a", **sizes, rng=rng)
        shown = (clip.mean((1, 2, 3)) - 10) / 11  # seconds
        assert mask.all()
        # The file has a frame every half second: nearer than a quarter one cannot be. What is
        # stored may be as far from what is wanted as from what it was stored for.
        wanted = shown[0] + 12 / rate * np.arange(frames)
        assert (np.abs(shown - wanted) < (0.3 if stride == 1 else 0.55) + 0.25).all(), shown
