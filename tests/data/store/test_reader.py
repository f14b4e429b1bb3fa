"""Reading the frame store, on real video files: exact, and never silently wrong."""

import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.store import reader as frames
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import decode, encode
from rvllm_jax.system.file_layout import LayoutError
from rvllm_jax.types import VideoInfo

REAL = Path(__file__).parents[4] / "shared/data/real_videos"


def decoded(path: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    shown, times = zip(*decode.Decoding(path, **options), strict=True)
    return np.stack(shown), np.array(times)


def test_raw_frames_and_times_are_the_decoders(stored, videos):
    store = FrameStore(stored)
    assert sorted([*store.entries, *store.bad]) == sorted(videos)
    for name, entry in store.entries.items():
        frames, times = decoded(videos[name])
        np.testing.assert_array_equal(store.read(name, np.arange(entry.num_frames)), frames)
        np.testing.assert_array_equal(store.timestamps(name), times)
        assert (entry.num_frames, entry.height, entry.width) == frames.shape[:3]
        assert entry.stride == 1 and entry.fps == pytest.approx(10)


def test_a_process_holds_few_shards_open(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_OPEN", 2)
    write_store(tmp_path, videos, StoreOptions(short_side=8), shards=11)
    store, alone = FrameStore(tmp_path), FrameStore(tmp_path)
    first = np.array([0])
    for name in [*store.entries, *store.entries]:
        np.testing.assert_array_equal(store.read(name, first), alone.read(name, first))
        assert len(store.timestamps(name)) == store.entries[name].num_frames
        assert len(store._readers) <= 2 and len(store._times) <= 2
        alone._close()


def test_stride_and_short_side_reach_the_decoder(videos, tmp_path):
    names = ["v2.mp4", "v6.mp4"]
    write_store(
        tmp_path, {name: videos[name] for name in names}, StoreOptions(stride=3, short_side=8)
    )
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
    encode.write(tmp_path / "a.mp4", frames.clip(0, 255).astype(np.uint8), fps=10)
    sizes = {}
    for encoding in ("raw", "jpeg"):
        report = write_store(
            tmp_path / encoding, {"a": tmp_path / "a.mp4"}, StoreOptions(encoding=encoding)
        )
        sizes[encoding] = report.num_bytes
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


def test_windows_equal_slices_and_open_only_their_records(stored):
    store = Counting(stored)
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
    for layout, message in ((0, "layout is 0, expected"), (2, "made by a newer version")):
        (copy / "index.json").write_text(json.dumps(index | {"layout": layout}))
        with pytest.raises(LayoutError, match=rf"index.json: .*{message}"):
            FrameStore(copy)
    fewer = index | {"shards": index["shards"][1:]}
    for damaged in ({"layout": 1, "entries": {"a": [1]}}, fewer):
        (copy / "index.json").write_text(json.dumps(damaged))
        with pytest.raises(FrameStoreError, match="index.json: damaged"):
            FrameStore(copy)
    (copy / "index.json").write_text("{")
    with pytest.raises(FrameStoreError, match="no index"):
        FrameStore(copy)


def test_what_is_known_of_the_videos_is_read_where_the_index_has_it(copy):
    index = json.loads((copy / "index.json").read_text())
    older = {key: value for key, value in index.items() if key not in ("info", "notes")}
    (copy / "index.json").write_text(json.dumps(older))
    assert FrameStore(copy).info == {} and FrameStore(copy).notes == {}
    info = VideoInfo("h264", 24, 16, 10.0, 3, 0.3, 99)
    own = {"info": {"v0.mp4": info}, "notes": {"v1.mp4": "cut"}}
    (copy / "index.json").write_text(json.dumps(index | own))
    store = FrameStore(copy)
    assert {"info": store.info, "notes": store.notes} == own
    assert store.path("v0.mp4").is_file()


def test_a_store_is_pickled_without_its_readers_and_read_by_threads(stored):
    store = FrameStore(stored)
    names = list(store.entries)
    frames = {name: store.read(name, np.array([1, 2])) for name in names}
    other = pickle.loads(pickle.dumps(store))
    assert store._readers and not other._readers
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda name: (name, other.read(name, np.array([1, 2]))), names * 50)
        for name, found in read:
            np.testing.assert_array_equal(found, frames[name])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real videos are not at {REAL}")
def test_real_files_come_out_as_the_decoder_gives_them(tmp_path):
    names = ["basketball.gif", "pool_short.mp4"]
    write_store(
        tmp_path, {name: REAL / name for name in names}, StoreOptions(stride=6, short_side=64)
    )
    store = FrameStore(tmp_path)
    assert not store.bad
    for name in names:
        frames, times = decoded(REAL / name, stride=6, short_side=64)
        np.testing.assert_array_equal(store.read(name, np.arange(len(frames))), frames)
        np.testing.assert_array_equal(store.timestamps(name), times)
    assert dataclasses.asdict(store.options)["stride"] == 6
