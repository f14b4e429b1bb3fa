"""Writing one shard: what is known of its videos, what a record may take, and flat memory."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest

from rvllm_jax.data.store import shard_writer, writer
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import decode

ROOT = Path(__file__).parents[3]


def test_what_files_say_and_what_to_know_of_them_is_kept(
    probe, videos, tmp_path, write_with, moving_bar
):
    cut = write_with(tmp_path / "cut.mp4", moving_bar(), options={"movflags": "+faststart"})
    cut.write_bytes(cut.read_bytes()[:-100])
    paths = {"cut": cut, "one": videos["v0.mp4"], "text": videos["v3.mp4"]}
    report = write_store(tmp_path / "store", paths, StoreOptions())
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert report.info.keys() == {"cut", "one"}
    assert index["info"] == {name: list(info) for name, info in report.info.items()}
    assert report.info["one"] == probe(paths["one"])
    assert report.info["cut"] == ("h264", 48, 36, 8.0, 20, 2.5, cut.stat().st_size)
    assert report.notes.keys() == {"cut"} and report.notes == index["notes"]
    assert "it declares 20 frames" in report.notes["cut"] and "are used" in report.notes["cut"]
    assert len(report.entries) == 2 and 5 < report.entry("cut").num_frames < 20


def test_a_share_that_is_too_small_sets_a_video_aside(
    tmp_path, write_with, moving_bar, monkeypatch
):
    cut = write_with(tmp_path / "cut.mp4", moving_bar(), options={"movflags": "+faststart"})
    cut.write_bytes(cut.read_bytes()[:-100])
    whole = write_with(tmp_path / "whole.mp4", moving_bar())
    paths = {"cut": cut, "whole": whole}
    with monkeypatch.context() as patch:
        for module in (shard_writer, writer):
            patch.setattr(module, "MIN_DECODED", 1.0)
        report = write_store(tmp_path / "store", paths, StoreOptions())
    assert report.bad.keys() == {"cut"} and "at least 1.0 is asked for" in report.bad["cut"]
    assert report.info.keys() == {"cut", "whole"} and len(report.entries) == 1
    store = FrameStore(tmp_path / "store")
    np.testing.assert_array_equal(
        store.read("whole", np.arange(20)),
        np.stack([frame for frame, _ in decode.Decoding(whole, short_side=256)]),
    )
    # What is asked for decides what is stored, so that another share writes anew.
    anew = write_store(tmp_path / "store", paths, StoreOptions())
    assert anew.entries.keys() == paths.keys()


def test_a_record_that_would_be_too_large_is_refused_before_memory_is_taken(
    tmp_path, write_with, moving_bar
):
    path = write_with(tmp_path / "a.mp4", moving_bar(3))
    report = write_store(
        tmp_path / "store", {"a": path}, StoreOptions(frames_per_record=10**6, short_side=36)
    )
    assert len(report.entries) == 0 and "1000000 frames of 48 x 36 pixels" in report.bad["a"]


def test_names_that_are_not_utf_8_are_kept(tmp_path, videos):
    name = os.fsdecode(b"\xff\xfe.mp4")
    path = tmp_path / name
    path.write_bytes(videos["v1.mp4"].read_bytes())
    report = write_store(
        tmp_path / "store",
        {name: path, "gone": tmp_path / f"{name}.gone"},
        StoreOptions(),
        workers=1,
    )
    assert report.info.keys() == {name} and "no such file" in report.bad["gone"]
    assert FrameStore(tmp_path / "store").read(name, np.arange(8)).shape[0] == 8


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length_of_a_video(tmp_path):
    def length(minutes):
        path = tmp_path / f"{minutes}.mp4"
        rng = np.random.default_rng(0)
        options = {"preset": "ultrafast", "threads": "1"}
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", rate=10, options=options)
            stream.height = stream.width = 256
            stream.pix_fmt = "yuv420p"
            for _ in range(minutes):  # a still picture a minute
                small = rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)
                frame = av.VideoFrame.from_ndarray(small).reformat(format="yuv420p")
                for _ in range(600):
                    frame.pts = None
                    out.mux(stream.encode(frame))
            out.mux(stream.encode())
        program = textwrap.dedent(f"""
            from rvllm_jax.data.store.shards import StoreOptions
            from rvllm_jax.data.store.writer import write_store
            report = write_store({str(tmp_path / f"store{minutes}")!r}, {{"a": {str(path)!r}}},
                                 stride=6, encoding="jpeg")
            # Not getrusage: its peak is also that of the process that this one was forked from.
            peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]  # KB
            print(report.num_frames, int(peak) >> 10)
        """)
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        frames, megabytes = map(int, done.stdout.split())
        assert frames == 100 * minutes
        return megabytes

    minute, hour = length(1), length(60)
    print(f"a minute takes {minute} MB, an hour {hour} MB")
    assert hour < 600 and hour - minute < 60
