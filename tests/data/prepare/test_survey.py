"""A first look at videos: what is seen, estimated and set aside; a worker that ends is replaced."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rvllm_jax.data.prepare.survey import Survey, SurveyJob, Thumbnail, _inspect, survey
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import encode
from rvllm_jax.types import VideoInfo

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_video_is_seen_or_set_aside_with_the_reason(probe, workers, videos):
    done = []
    seen = survey(
        videos, thumbnails=3, short_side=20, workers=workers, progress=lambda *d: done.append(d)
    )
    assert list(seen.info) == sorted(set(videos) - {"v3.mp4", "v8.mp4"})
    assert seen.info["v2.mp4"] == probe(videos["v2.mp4"])
    assert "not a readable video" in seen.bad["v3.mp4"] and "0 bytes" in seen.bad["v8.mp4"]
    assert done[-1] == (len(videos), len(videos)) and len(done) == len(videos)
    assert set(seen.thumbnails) <= set(seen.info) and 2 <= len(seen.thumbnails) <= 3
    image = simplejpeg.decode_jpeg(seen.thumbnails["v0.mp4"].jpeg)
    assert image.shape == (20, 30, 3)
    assert not survey(videos, thumbnails=0, short_side=20).thumbnails


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_the_estimate_is_near_what_is_stored(encoding, videos, tmp_path):
    options = StoreOptions(2, 64, encoding, frames_per_record=64)
    seen = survey(videos, thumbnails=9, short_side=64)
    guess = seen.estimate(options)
    report = write_store(tmp_path, videos, options)
    assert guess["frames"] == report.num_frames and guess["unknown"] == 0
    stored = sum(
        os.path.getsize(path) for path in tmp_path.glob("frames-videos*")
    )  # ArrayRecord fills up blocks of 64 kB
    assert 0.8 * guess["bytes"] < stored < 1.2 * guess["bytes"] + (1 << 16) * 2 * 11


def test_a_header_that_promises_too_much_does_not_decide_the_estimate():
    info = VideoInfo("h264", 256, 256, 25.0, 10**9, 4e7, 8000)
    unknown = VideoInfo("h264", 256, 256, 25.0, 0, 0.0, 8000)
    seen = Survey({"a": info, "b": unknown}, {}, {"a": Thumbnail(b"", 100, 50)})
    expected = {"frames": 1000, "bytes": 1000 * 128 * 128 // 2, "unknown": 1}
    assert seen.estimate(StoreOptions(1, 128, "jpeg")) == expected


# A program whose workers do what a video's name says, in place of the decoder.
PROGRAM = """
import ctypes, json, multiprocessing, os, signal, sys, time
from pathlib import Path
from rvllm_jax.data.prepare import survey as video_survey
from rvllm_jax.data.video.decode import VideoInfo

def look(job, beat):
    beat(0)
    if "slow" in job[0]:  # four times the limit, with signs of life
        for _ in range(200):
            time.sleep(0.01)
            beat(0)
    if "orphan" in job[0]:
        job[1].touch()
    if "lock" in job[0]:  # a hang that never gives up Python's lock
        ctypes.PyDLL(None).sleep(600)
    if "hang" in job[0]:
        time.sleep(600)
    if "crash" in job[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return video_survey.Inspection(job[0], VideoInfo("h264", 2, 2, 1.0, 1, 1.0, 1))

def survey(names, progress=None, time_limit=0.5):
    files = {name: Path(name) for name in names}
    how = dict(thumbnails=0, short_side=20, progress=progress)
    video_survey.TIME_LIMIT = time_limit
    return video_survey.survey(files, workers=2, **how)

if __name__ == "__main__":
    video_survey._inspect = look
    if len(sys.argv) > 1:
        survey(sys.argv[1:], time_limit=600)
    found = survey(["a", "b crash", "c", "d hang", "e crash", "f slow", "g hang", "h"])
    left = len(multiprocessing.active_children())
    def fail(done, total):
        raise OSError("as a closed terminal does")
    try:
        survey(["a", "b hang", "c hang"], fail)
    except OSError as error:
        left += len(multiprocessing.active_children())
        print(json.dumps([list(found.info), found.bad, str(error), left]))
"""


def test_videos_that_hang_or_crash_the_decoder_are_set_aside_and_no_worker_is_left(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True,
        timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    seen, bad, error, left = json.loads(process.stdout)
    assert seen == ["a", "c", "f slow", "h"]
    assert list(bad) == ["b crash", "d hang", "e crash", "g hang"]
    assert "the process that decodes it ends (SIGKILL)" in bad["b crash"]
    assert "no new frame for 0.5 s" in bad["d hang"]
    assert error == "as a closed terminal does" and left == 0


@pytest.mark.parametrize("how", ["hang", "lock"])
def test_workers_that_hang_end_with_a_parent_that_was_killed(tmp_path, session_ends, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    reached = [tmp_path / f"orphan {how} {number}" for number in range(2)]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), *map(str, reached)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in reached):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    session_ends(process.pid)


@pytest.mark.parametrize("thumbnails", [0, 1])
def test_every_packet_that_is_read_is_a_sign_of_life(thumbnails, tmp_path, write_with):
    path = write_with(tmp_path / "a.mkv", np.zeros((9, 32, 64, 3), np.uint8))
    calls = []
    job = SurveyJob("a", path, 32 if thumbnails else None)
    _, info, thumbnail, _ = _inspect(job, calls.append)
    assert info.fps == 8 and bool(thumbnail) == bool(thumbnails)
    assert len(calls) > 9  # its packets are read for their times, before its first frame


def test_a_thumbnail_is_the_last_frame_that_there_is(tmp_path):
    frames = np.zeros((9, 32, 64, 3), np.uint8)
    frames[4:] = 255
    encode.write(tmp_path / "a.mp4", frames, fps=5)
    shown = survey({"a": tmp_path / "a.mp4"}, thumbnails=1, short_side=32).thumbnails["a"]
    assert simplejpeg.decode_jpeg(shown.jpeg).mean() > 200  # of the middle, not the first one
