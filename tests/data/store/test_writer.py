"""Preparing the frame store, on real video files: resumable, and no video lost unnamed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.store.reader import FrameStore, check_share
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions
from rvllm_jax.data.store.writer import write_store

ROOT = Path(__file__).parents[3]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(store: FrameStore) -> tuple:
    return store.entries, store.bad, store.info, store.notes, store.num_bytes


def test_shards_are_the_same_for_any_number_of_workers(stored, videos, tmp_path, options):
    report = write_store(tmp_path, videos, workers=2, **options)
    assert files(tmp_path) == files(stored)
    assert contents(report) == contents(write_store(stored, videos, **options))


def test_broken_videos_are_set_aside_named_and_bounded(stored, videos, options):
    report = write_store(stored, videos, **options)
    store = FrameStore(stored)
    assert set(report.bad) == {"v3.mp4", "v8.mp4"} and report.bad == store.bad
    assert "v3.mp4: not a readable video" in report.bad["v3.mp4"] and "0 bytes" in str(report.bad)
    assert len(report.entries) == 9
    assert report.num_frames == sum(entry.num_frames for entry in store.entries.values())
    check_share(report.bad, 11, 0.2)
    message = r"2 of 11 videos.*0\.182.*'v3.mp4': .*'v8.mp4'.*raise config\.data\.max_bad"
    with pytest.raises(FrameStoreError, match=message):
        check_share(report.bad, 11, 0.1)
    with pytest.raises(FrameStoreError, match="'v3.mp4'.*not a readable video"):
        store.read("v3.mp4", np.array([0]))
    with pytest.raises(FrameStoreError, match="'v99'.*not made from it"):
        store.read("v99", np.array([0]))


def test_a_missing_video_file_is_set_aside(videos, tmp_path):
    report = write_store(
        tmp_path, {"a": videos["v0.mp4"], "gone": tmp_path / "gone.mp4"}, StoreOptions()
    )
    assert len(report.entries) == 1 and "no such file" in report.bad["gone"]


def test_a_finished_store_is_reused_and_another_one_is_rebuilt_with_a_log_line(
    copy, videos, caplog, options
):
    stamps = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    write_store(copy, videos, **options)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert not caplog.records
    calls = []
    report = write_store(
        copy,
        videos,
        StoreOptions(stride=2, short_side=None, frames_per_record=4),
        shards=2,
        progress=lambda *n: calls.append(n),
    )
    assert "written anew" in caplog.text and str(copy) in caplog.text
    assert calls == sorted(calls) and calls[-1] == (11, 11) and len(calls) > 4
    assert not any("of-00003" in name for name in files(copy))
    assert FrameStore(copy).entries["v0.mp4"].num_frames == 2 and len(report.entries) == 9


def test_a_changed_video_is_decoded_again(videos, tmp_path):
    paths = {name: tmp_path / name for name in ("v1.mp4", "v2.mp4")}
    for name, path in paths.items():
        path.write_bytes(videos[name].read_bytes())
    assert write_store(tmp_path / "s", paths, StoreOptions()).num_frames == 8 + 13
    paths["v1.mp4"].write_bytes(videos["v4.mp4"].read_bytes())
    assert write_store(tmp_path / "s", paths, StoreOptions()).num_frames == 23 + 13


def test_where_one_video_changes_only_its_shard_is_written_again(stored, videos, tmp_path, options):
    paths = dict(videos) | {"v8.mp4": tmp_path / "v8.mp4"}
    paths["v8.mp4"].write_bytes(videos["v8.mp4"].read_bytes())
    write_store(tmp_path / "s", paths, **options)
    done = [tmp_path / "s" / f"shard-0000{shard}-of-00003.json" for shard in range(3)]
    stamps = [path.stat().st_mtime_ns for path in done]
    paths["v8.mp4"].write_bytes(videos["v9.mp4"].read_bytes())  # the empty file is replaced
    report = write_store(tmp_path / "s", paths, **options)
    assert set(report.bad) == {"v3.mp4"}
    again = [old != path.stat().st_mtime_ns for old, path in zip(stamps, done, strict=True)]
    changed = FrameStore(tmp_path / "s").entries["v8.mp4"].shard
    assert again == [shard == changed for shard in range(3)]
    whole = write_store(tmp_path / "t", paths, **options)
    assert contents(whole) == contents(report) and files(tmp_path / "t") == files(tmp_path / "s")


def test_a_folder_with_other_files_is_left_alone(videos, tmp_path):
    # What tfds.folder_dataset writes is part of a store.
    (tmp_path / "features.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FrameStoreError, match=r"other files.*\(thesis.txt\).*another folder"):
        write_store(tmp_path, videos, StoreOptions())
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def script(folder: Path, videos: dict[str, Path], options: dict, body: str) -> list[str]:
    """A command that prepares `videos`; `body` may set `progress` and `workers`."""
    code = f"""
    import os, resource, signal, time
    from pathlib import Path
    from rvllm_jax.data.store.shards import StoreOptions
    from rvllm_jax.data.store.writer import write_store
    if __name__ == "__main__":
        progress, workers = None, 0
        {body}
        write_store({str(folder)!r}, { ({k: str(v) for k, v in videos.items()})!r},
                    progress=progress, workers=workers, **{options!r})
    """
    path = folder.parent / "prepare.py"  # a file, as spawned workers import their main again
    path.write_text(textwrap.dedent(code))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_preparation_continues_to_the_same_bytes(
    stored, videos, tmp_path, workers, options, session_ends
):
    # The first shard has three videos.
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    body = f"workers = {workers}; progress = lambda done, _: done < 3 or {kill}"
    store = tmp_path / "store"
    process = subprocess.Popen(
        script(store, videos, options, body), env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    assert process.wait(60) == -signal.SIGKILL
    session_ends(process.pid)
    with pytest.raises(FrameStoreError, match="no index"):
        FrameStore(store)
    first = store / "shard-00000-of-00003.json"
    stamp = first.stat().st_mtime_ns
    (store / "frames-videos.array_record-00002-of-00003.tmp").write_bytes(b"half")
    write_store(store, videos, **options)
    assert first.stat().st_mtime_ns == stamp  # not done again
    assert files(store) == files(stored)


def test_no_space_left_is_said_and_leaves_no_half_shard(stored, videos, tmp_path, options):
    # A limit on the size of files fails a write as a full disk does, midway in a shard.
    body = "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))"
    store = tmp_path / "store"
    result = subprocess.run(
        script(store, videos, options, body), env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "StoreWriteError" in result.stderr.splitlines()[-1]
    assert "cannot be written" in result.stderr and "Free some space" in result.stderr
    # What is done stays in the journal.
    assert {name.partition("-")[0] for name in files(store)} <= {"lock", "journal"}
    write_store(store, videos, **options)
    assert files(store) == files(stored)


@pytest.mark.parametrize("kept", [0, 1000, 70_000, -1])
def test_a_cut_shard_is_refused_and_only_it_is_written_again(copy, stored, videos, kept, options):
    path = copy / "frames-videos.array_record-00001-of-00003"
    path.write_bytes(path.read_bytes()[:kept])
    store = FrameStore(copy)
    name = next(name for name, entry in store.entries.items() if entry.shard == 1)
    with pytest.raises(FrameStoreError, match="00001-of-00003: damaged .*Delete this file"):
        store.read(name, np.array([0]))
    other = copy / "frames-videos.array_record-00000-of-00003"
    stamp = other.stat().st_mtime_ns
    write_store(copy, videos, **options)
    assert files(copy) == files(stored) and other.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("bad", [{"stride": 0}, {"encoding": "png"}, {"frames_per_record": 0},
                                 {"shards": 0}, {"short_side": -1}])  # fmt: skip
def test_impossible_options_are_refused_before_anything_is_made(videos, tmp_path, bad):
    key, how = next(iter(bad)), {k: v for k, v in bad.items() if k == "shards"}
    options = StoreOptions(**{k: v for k, v in bad.items() if k not in how})
    with pytest.raises(ValueError, match=key):
        write_store(tmp_path / "store", videos, options, **how)
    with pytest.raises(ValueError, match="at least one video"):
        write_store(tmp_path / "store", {}, StoreOptions())
    assert not (tmp_path / "store").exists()
