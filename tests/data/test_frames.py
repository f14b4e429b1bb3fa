"""The frame store, on real video files: exact, resumable, and never silently wrong."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data import video
from rvllm_jax.data.frames import FrameStore, FrameStoreError, check_share, write_store

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/real_videos"
OPTIONS = {"short_side": None, "frames_per_record": 4, "shards": 3}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """Nine videos of several lengths and sizes at 10 frames a second, and two that are broken."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    paths = {f"v{number}.mp4": folder / f"v{number}.mp4" for number in range(11)}
    for number, path in enumerate(paths.values()):
        shape = (3 + 5 * number, 16 + 2 * number, 24, 3)
        video.write(path, rng.integers(0, 256, shape, np.uint8), fps=10)
    paths["v3.mp4"].write_bytes(rng.bytes(5000))
    paths["v8.mp4"].write_bytes(b"")
    return paths


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, videos, **OPTIONS)
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A store of its own to damage, with equal bytes."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(path: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    frames, times = zip(*video.decode(path, **options), strict=True)
    return np.stack(frames), np.array(times)


def test_raw_frames_and_times_are_the_decoders(folder, videos):
    store = FrameStore(folder)
    assert sorted([*store.entries, *store.bad]) == sorted(videos)
    for name, entry in store.entries.items():
        frames, times = decoded(videos[name])
        np.testing.assert_array_equal(store.read(name, np.arange(entry.num_frames)), frames)
        np.testing.assert_array_equal(store.timestamps(name), times)
        assert (entry.num_frames, entry.height, entry.width) == frames.shape[:3]
        assert entry.stride == 1 and entry.fps == pytest.approx(10)


def test_stride_and_short_side_reach_the_decoder(videos, tmp_path):
    names = ["v2.mp4", "v6.mp4"]
    write_store(tmp_path, {name: videos[name] for name in names}, stride=3, short_side=8)
    store = FrameStore(tmp_path)
    for name in names:
        frames, times = decoded(videos[name], stride=3, short_side=8)
        np.testing.assert_array_equal(store.read(name, np.arange(len(frames))), frames)
        entry = store.entries[name]
        assert (entry.num_frames, entry.height, entry.width) == frames.shape[:3]
        assert entry.stride == 3 and entry.fps == pytest.approx(10 / 3)
        np.testing.assert_array_equal(store.timestamps(name), times)


def test_jpeg_frames_are_alike_and_smaller(tmp_path):
    y, x = np.mgrid[:64, :96]
    frames = np.stack([np.stack([2 * x + t, 3 * y, x + y], -1) for t in range(12)])
    video.write(tmp_path / "a.mp4", frames.clip(0, 255).astype(np.uint8), fps=10)
    sizes = {}
    for encoding in ("raw", "jpeg"):
        report = write_store(tmp_path / encoding, {"a": tmp_path / "a.mp4"}, encoding=encoding)
        sizes[encoding] = report.bytes
    raw, jpeg = (FrameStore(tmp_path / e).read("a", np.arange(12)) for e in ("raw", "jpeg"))
    assert raw.shape == (12, 256, 384, 3)
    assert abs(raw.astype(int) - jpeg).mean() < 2
    assert sizes["jpeg"] < sizes["raw"] / 5
    store = FrameStore(tmp_path / "jpeg")
    np.testing.assert_array_equal(
        store.read("a", np.array([7, 2]), box=(30, 40, 50)), jpeg[[7, 2], 30:80, 40:90]
    )


class Counting(FrameStore):
    """A store that notes which records it reads."""

    def _read_bytes(self, shard, position):
        self.seen.append(position)
        return super()._read_bytes(shard, position)


def test_windows_equal_slices_and_open_only_their_records(folder):
    store = Counting(folder)
    entry = store.entries["v10.mp4"]
    store.seen = []
    whole = store.read("v10.mp4", np.arange(entry.num_frames))
    assert store.seen == list(range(entry.first_record, entry.first_record + entry.num_records))
    for indices in ([0], [3, 4], [52], [9, 17, 25], [30, 2, 31, 2], list(range(5, 21)), []):
        store.seen = []
        indices = np.array(indices, np.int64)
        np.testing.assert_array_equal(store.read("v10.mp4", indices), whole[indices])
        assert store.seen == sorted({entry.first_record + i // 4 for i in indices})
    out = np.zeros((2, 10, 10, 3), np.uint8)
    assert store.read("v10.mp4", np.array([50, 1]), box=(3, 5, 10), out=out) is out
    np.testing.assert_array_equal(out, whole[[50, 1], 3:13, 5:15])
    for outside in ([-1], [53]):
        with pytest.raises(IndexError, match="frames 0 to 52"):
            store.read("v10.mp4", np.array(outside))


def test_shards_are_the_same_for_any_number_of_workers(folder, videos, tmp_path):
    report = write_store(tmp_path, videos, workers=2, **OPTIONS)
    assert files(tmp_path) == files(folder)
    assert report == write_store(folder, videos, **OPTIONS)


def test_broken_videos_are_set_aside_named_and_bounded(folder, videos):
    report = write_store(folder, videos, **OPTIONS)
    store = FrameStore(folder)
    assert set(report.bad) == {"v3.mp4", "v8.mp4"} and report.bad == store.bad
    assert "v3.mp4: not a readable video" in report.bad["v3.mp4"] and "0 bytes" in str(report.bad)
    assert report.videos == 9
    assert report.frames == sum(entry.num_frames for entry in store.entries.values())
    for prepared in (report, store):
        check_share(prepared, 0.2)
        message = r"2 of 11 videos.*0\.182.*'v3.mp4': .*'v8.mp4'.*raise config\.data\.max_bad"
        with pytest.raises(FrameStoreError, match=message):
            check_share(prepared, 0.1)
    with pytest.raises(FrameStoreError, match="'v3.mp4'.*not a readable video"):
        store.read("v3.mp4", np.array([0]))
    with pytest.raises(FrameStoreError, match="'v99'.*not made from it"):
        store.read("v99", np.array([0]))


def test_a_missing_video_file_is_set_aside(videos, tmp_path):
    report = write_store(tmp_path, {"a": videos["v0.mp4"], "gone": tmp_path / "gone.mp4"})
    assert report.videos == 1 and "no such file" in report.bad["gone"]


def test_a_finished_store_is_reused_and_another_one_is_rebuilt_with_a_log_line(
    copy, videos, caplog
):
    stamps = {path: path.stat().st_mtime_ns for path in copy.iterdir() if path.name != "lock"}
    write_store(copy, videos, **OPTIONS)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert not caplog.records
    calls = []
    report = write_store(
        copy, videos, **OPTIONS | {"shards": 2}, stride=2, progress=lambda *n: calls.append(n)
    )
    assert "written anew" in caplog.text and str(copy) in caplog.text
    assert calls == [(5, 11), (11, 11)]
    assert not any("of-00003" in name for name in files(copy))
    assert FrameStore(copy).entries["v0.mp4"].num_frames == 2 and report.videos == 9


def test_a_changed_video_is_decoded_again(videos, tmp_path):
    paths = {name: tmp_path / name for name in ("v1.mp4", "v2.mp4")}
    for name, path in paths.items():
        path.write_bytes(videos[name].read_bytes())
    assert write_store(tmp_path / "s", paths).frames == 8 + 13
    paths["v1.mp4"].write_bytes(videos["v4.mp4"].read_bytes())
    assert write_store(tmp_path / "s", paths).frames == 23 + 13


def test_a_folder_with_other_files_is_left_alone(videos, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FrameStoreError, match="other files.*thesis.txt.*another folder"):
        write_store(tmp_path, videos)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def script(folder: Path, videos: dict[str, Path], body: str) -> list[str]:
    """A command that prepares `videos`; `body` may set `progress` and `workers`."""
    code = f"""
    import os, resource, signal, time
    from pathlib import Path
    from rvllm_jax.data.frames import write_store
    if __name__ == "__main__":
        progress, workers = None, 0
        {body}
        write_store({str(folder)!r}, {({k: str(v) for k, v in videos.items()})!r},
                    progress=progress, workers=workers, **{OPTIONS!r})
    """
    path = folder.parent / "prepare.py"  # a file, as spawned workers import their main again
    path.write_text(textwrap.dedent(code))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_preparation_continues_to_the_same_bytes(folder, videos, tmp_path, workers):
    body = f"workers = {workers}; progress = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    store = tmp_path / "store"
    process = subprocess.Popen(
        script(store, videos, body), env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    assert process.wait(60) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while alive := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                    if session(pid) == process.pid]:  # fmt: skip
        assert time.monotonic() < deadline, f"workers outlive the run: {alive}"
        time.sleep(0.05)
    with pytest.raises(FrameStoreError, match="no index"):
        FrameStore(store)
    first = store / "shard-00000-of-00003.json"
    stamp = first.stat().st_mtime_ns
    (store / "frames-videos.array_record-00002-of-00003.tmp").write_bytes(b"half")
    write_store(store, videos, **OPTIONS)
    assert first.stat().st_mtime_ns == stamp  # not done again
    assert files(store) == files(folder)


def session(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if status[0] == "Z" else int(status[3])


def test_no_space_left_is_said_and_leaves_no_half_shard(folder, videos, tmp_path):
    # A limit on the size of files fails a write as a full disk does, midway in a shard.
    body = "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))"
    store = tmp_path / "store"
    result = subprocess.run(
        script(store, videos, body), env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "FrameStoreError" in result.stderr.splitlines()[-1]
    assert "cannot be written" in result.stderr and "Free some space" in result.stderr
    assert set(files(store)) == {"lock"}
    write_store(store, videos, **OPTIONS)
    assert files(store) == files(folder)


def test_a_damaged_record_is_refused_and_the_others_stay_readable(copy):
    store = FrameStore(copy)
    entry = store.entries["v10.mp4"]
    frames = store.read("v10.mp4", np.arange(entry.num_frames))
    path = copy / f"frames-videos.array_record-{entry.shard:05d}-of-00003"
    content = bytearray(path.read_bytes())
    at = content.index(frames[9].tobytes()[:64])  # in the third record
    content[at + 5] ^= 1
    path.write_bytes(content)
    store = FrameStore(copy)
    np.testing.assert_array_equal(store.read("v10.mp4", np.array([0])), frames[[0]])
    for _ in range(2):
        with pytest.raises(FrameStoreError, match=r"record \d+, of video 'v10.mp4'.*Delete this"):
            store.read("v10.mp4", np.array([8]))
        np.testing.assert_array_equal(store.read("v10.mp4", np.array([7, 12])), frames[[7, 12]])


def test_no_flipped_byte_of_a_shard_goes_unnoticed(copy):
    store = FrameStore(copy)
    names = [name for name, entry in store.entries.items() if entry.shard == 0]
    everything = {name: np.arange(store.entries[name].num_frames) for name in names}
    frames = {name: store.read(name, everything[name]) for name in names}
    path = copy / "frames-videos.array_record-00000-of-00003"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in [*range(32), *rng.integers(0, len(good), 80), *range(len(good) - 32, len(good))]:
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        store = FrameStore(copy)
        for name in names:
            try:
                np.testing.assert_array_equal(store.read(name, everything[name]), frames[name])
            except FrameStoreError:
                refused += 1
    assert refused > 10


def test_records_of_two_videos_exchanged_are_noticed(copy):
    index = json.loads((copy / "index.json").read_text())
    rows = index["entries"]
    rows["v9.mp4"][:2], rows["v10.mp4"][:2] = rows["v10.mp4"][:2], rows["v9.mp4"][:2]
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(FrameStoreError, match="is not frame 0 of 'v9.mp4'"):
        FrameStore(copy).read("v9.mp4", np.array([0]))


@pytest.mark.parametrize("kept", [0, 1000, 70_000, -1])
def test_a_cut_shard_is_refused_and_only_it_is_written_again(copy, folder, videos, kept):
    path = copy / "frames-videos.array_record-00001-of-00003"
    path.write_bytes(path.read_bytes()[:kept])
    store = FrameStore(copy)
    name = next(name for name, entry in store.entries.items() if entry.shard == 1)
    with pytest.raises(FrameStoreError, match="00001-of-00003: damaged .*Delete this file"):
        store.read(name, np.array([0]))
    other = copy / "frames-videos.array_record-00000-of-00003"
    stamp = other.stat().st_mtime_ns
    write_store(copy, videos, **OPTIONS)
    assert files(copy) == files(folder) and other.stat().st_mtime_ns == stamp


def test_damaged_times_and_missing_shards_are_refused(copy):
    for path in copy.glob("times-*"):
        path.write_bytes(path.read_bytes()[::-1])
    (copy / "frames-videos.array_record-00000-of-00003").unlink()
    store = FrameStore(copy)
    with pytest.raises(FrameStoreError, match=r"times-00000-of-00003.f64.*checksum"):
        store.timestamps("v0.mp4")
    (copy / "times-00000-of-00003.f64").unlink()
    with pytest.raises(FrameStoreError, match=r"times-00000-of-00003.f64: damaged .*No such file"):
        store.timestamps("v0.mp4")
    with pytest.raises(FrameStoreError, match="00000-of-00003: damaged"):
        store.read("v0.mp4", np.array([0]))


def test_folders_without_a_store_of_this_layout_are_refused(copy, tmp_path):
    with pytest.raises(FrameStoreError, match="absent: holds no index.*Prepare"):
        FrameStore(tmp_path / "absent")
    index = json.loads((copy / "index.json").read_text())
    for changes, message in (({"layout": 0}, "layout 0, expected"), ({"bad": 3}, None)):
        (copy / "index.json").write_text(json.dumps(index | changes))
        if message:
            with pytest.raises(FrameStoreError, match=message):
                FrameStore(copy)
    (copy / "index.json").write_text(json.dumps({"layout": 1, "entries": {"a": [1]}}))
    with pytest.raises(FrameStoreError, match="index.json: damaged"):
        FrameStore(copy)
    (copy / "index.json").write_text("{")
    with pytest.raises(FrameStoreError, match="no index"):
        FrameStore(copy)


def test_a_store_is_pickled_without_its_readers_and_read_by_threads(folder):
    store = FrameStore(folder)
    names = list(store.entries)
    frames = {name: store.read(name, np.array([1, 2])) for name in names}
    other = pickle.loads(pickle.dumps(store))
    assert store._readers and not other._readers
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda name: (name, other.read(name, np.array([1, 2]))), names * 50)
        for name, found in read:
            np.testing.assert_array_equal(found, frames[name])


@pytest.mark.parametrize("bad", [{"stride": 0}, {"encoding": "png"}, {"frames_per_record": 0},
                                 {"shards": 0}, {"short_side": -1}])  # fmt: skip
def test_impossible_options_are_refused_before_anything_is_made(videos, tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        write_store(tmp_path / "store", videos, **bad)
    with pytest.raises(ValueError, match="at least one video"):
        write_store(tmp_path / "store", {})
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real videos are not at {REAL}")
def test_real_files_come_out_as_the_decoder_gives_them(tmp_path):
    names = ["basketball.gif", "pool_short.mp4"]
    write_store(tmp_path, {name: REAL / name for name in names}, stride=6, short_side=64)
    store = FrameStore(tmp_path)
    assert not store.bad
    for name in names:
        frames, times = decoded(REAL / name, stride=6, short_side=64)
        np.testing.assert_array_equal(store.read(name, np.arange(len(frames))), frames)
        np.testing.assert_array_equal(store.timestamps(name), times)
    assert dataclasses.asdict(store.options)["stride"] == 6
