"""A first look at videos: what is seen, estimated and set aside; a worker that ends is replaced."""

import os
import signal
import time

import numpy as np
import pytest
import simplejpeg

from rvllm_jax.data import video, video_survey
from rvllm_jax.data.frames import write_store
from rvllm_jax.data.video import VideoInfo
from rvllm_jax.data.video_survey import Survey, Thumbnail, survey


@pytest.mark.parametrize("workers", [0, 2])
def test_every_video_is_seen_or_set_aside_with_the_reason(workers, videos):
    done = []
    seen = survey(
        videos, thumbnails=3, short_side=20, workers=workers, progress=lambda *d: done.append(d)
    )
    assert list(seen.info) == sorted(set(videos) - {"v3.mp4", "v8.mp4"})
    assert seen.info["v2.mp4"] == video.probe(videos["v2.mp4"])
    assert "not a readable video" in seen.bad["v3.mp4"] and "0 bytes" in seen.bad["v8.mp4"]
    assert done[-1] == (len(videos), len(videos)) and len(done) == len(videos)
    assert set(seen.thumbnails) <= set(seen.info) and 2 <= len(seen.thumbnails) <= 3
    image = simplejpeg.decode_jpeg(seen.thumbnails["v0.mp4"].jpeg)
    assert image.shape == (20, 30, 3)
    assert not survey(videos, thumbnails=0, short_side=20).thumbnails


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_the_estimate_is_near_what_is_stored(encoding, videos, tmp_path):
    seen = survey(videos, thumbnails=9, short_side=64)
    guess = seen.estimate(stride=2, short_side=64, encoding=encoding)
    report = write_store(
        tmp_path, videos, stride=2, short_side=64, encoding=encoding, frames_per_record=64
    )
    assert guess["frames"] == report.frames and guess["unknown"] == 0
    stored = sum(
        os.path.getsize(path) for path in tmp_path.glob("frames-videos*")
    )  # ArrayRecord fills up blocks of 64 kB
    assert 0.8 * guess["bytes"] < stored < 1.2 * guess["bytes"] + (1 << 16) * 2 * 11


def test_a_header_that_promises_too_much_does_not_decide_the_estimate():
    info = VideoInfo("h264", 256, 256, 25.0, 10**9, 4e7, 8000)
    unknown = VideoInfo("h264", 256, 256, 25.0, 0, 0.0, 8000)
    seen = Survey({"a": info, "b": unknown}, {}, {"a": Thumbnail(b"", 100, 50)})
    expected = {"frames": 1000, "bytes": 1000 * 128 * 128 // 2, "unknown": 1}
    assert seen.estimate(stride=1, short_side=128, encoding="jpeg") == expected


def _look(job):
    """In place of the decoder: does what a video's name says."""
    name = job[0]
    if "hang" in name:
        time.sleep(600)
    if "crash" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    return name, VideoInfo("h264", 2, 2, 1.0, 1, 1.0, 1), None


def _serve(connection):
    video_survey._look = _look
    _SERVE(connection)


_SERVE = video_survey._serve


@pytest.fixture
def named(monkeypatch):
    """Workers that do what a video's name says."""
    context = video_survey.multiprocessing.get_context("fork")
    monkeypatch.setattr(video_survey, "_serve", _serve)
    monkeypatch.setattr(video_survey, "_START", 1.0)
    monkeypatch.setattr(video_survey.multiprocessing, "get_context", lambda kind: context)


@pytest.mark.usefixtures("named")
def test_videos_that_hang_or_crash_the_decoder_are_set_aside_and_the_rest_is_seen(tmp_path):
    names = ["a", "b crash", "c", "d hang", "e crash", "f", "g hang", "h"]
    seen = survey(
        {name: tmp_path / name for name in names},
        thumbnails=0, short_side=20, workers=2, time_limit=0.5,
    )  # fmt: skip
    assert list(seen.info) == ["a", "c", "f", "h"]
    assert list(seen.bad) == ["b crash", "d hang", "e crash", "g hang"]
    assert "crashes (exit code -9)" in seen.bad["b crash"]
    assert "hangs (its first frame takes more than 0.5 s)" in seen.bad["d hang"]
    assert not video_survey.multiprocessing.active_children()


@pytest.mark.usefixtures("named")
def test_no_worker_is_left_where_the_caller_fails(tmp_path):
    def fail(done, total):
        raise OSError("as a closed terminal does")

    files = {name: tmp_path / name for name in ("a", "b hang", "c hang")}
    with pytest.raises(OSError, match="closed terminal"):
        survey(files, thumbnails=0, short_side=20, workers=3, progress=fail)
    assert not video_survey.multiprocessing.active_children()


def test_a_thumbnail_is_the_last_frame_that_there_is(tmp_path):
    frames = np.zeros((9, 32, 64, 3), np.uint8)
    frames[4:] = 255
    video.write(tmp_path / "a.mp4", frames, fps=5)
    shown = survey({"a": tmp_path / "a.mp4"}, thumbnails=1, short_side=32).thumbnails["a"]
    assert simplejpeg.decode_jpeg(shown.jpeg).mean() > 200  # of the middle, not the first one
