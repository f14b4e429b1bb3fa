"""Shards written by watched processes: real ones, with videos that hang or crash them."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.store import shard_writer
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shard_writer import write_shards
from rvllm_jax.data.store.shards import StoreOptions, Task
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import decode
from rvllm_jax.system import pool

ROOT = Path(__file__).parents[3]

# The worker processes import this script too, and with it a decoder that fails at some files.
PROGRAM = """
    import ctypes, json, os, signal, sys, time
    from pathlib import Path
    import numpy as np
    from rvllm_jax.data.video import decode as video
    from rvllm_jax.data.store import shard_writer
    from rvllm_jax.data.store.shards import StoreOptions
    from rvllm_jax.data.store.writer import write_store

    shard_writer.TIME_LIMIT = {limit}
    FAILURES = {failures!r}  # name -> what happens at the third frame

    class Failing(video.Decoding):
        def __init__(self, path, **options):
            super().__init__(path, **options)
            self.what, self.count = FAILURES.get(Path(path).name), 0
        def __next__(self):
            self.count += 1
            if self.what and self.count == 3:
                with open({met!r}, "a") as file:
                    file.write(self.what + " ")
                if self.what == "sleep":
                    time.sleep(1000)
                elif self.what == "lock":  # a hang that never gives up Python's lock
                    ctypes.PyDLL(None).sleep(1000)
                elif self.what == "raise":
                    raise RuntimeError("a defect")
                elif self.what == "memory":
                    self.taken = np.ones(6 << 30, np.uint8)
                elif self.what == "once":
                    if Path({met!r}).read_text().count("once") == 1:
                        os.kill(os.getpid(), signal.SIGKILL)
                else:
                    os.kill(os.getpid(), getattr(signal, self.what))
            return super().__next__()

    video.Decoding = Failing
    if __name__ == "__main__":
        write_store({folder!r}, {videos!r}, **{options!r})
"""


def run(tmp_path, videos, failures, limit=60.0, **options):
    """Prepares into tmp_path/store; returns what the failing decoder met."""
    met = tmp_path / "met"
    program = tmp_path / "prepare.py"
    values = dict(failures=failures, met=str(met), folder=str(tmp_path / "store"), options=options)
    values["limit"] = limit
    values["videos"] = {name: str(path) for name, path in videos.items()}
    program.write_text(textwrap.dedent(PROGRAM).format(**values))
    met.write_text("")
    result = subprocess.run(
        [sys.executable, program], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return met.read_text().split()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FAILURES = {
    "v1.mp4": "sleep", "v2.mp4": "SIGSEGV", "v4.mp4": "raise", "v6.mp4": "once", "v7.mp4": "memory",
}  # fmt: skip
REASONS = {
    "v1.mp4": "no new frame for 1.5 s",
    "v2.mp4": "ends (SIGSEGV)",
    "v4.mp4": "ends (exit code 1)",
    "v7.mp4": "take too much memory",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_videos_that_hang_or_crash_are_set_aside_and_the_rest_is_written(
    videos, stored, tmp_path, options, workers
):
    options = options | {"workers": workers, "limit": 1.5}
    met = run(tmp_path, videos, FAILURES, **options)
    # Killed from outside, a process gets a second try; nothing else is met twice.
    assert set(met) == set(FAILURES.values()) and met.count("once") == 2
    assert all(met.count(what) == 1 for what in ("sleep", "SIGSEGV", "raise"))
    store, whole = FrameStore(tmp_path / "store"), FrameStore(stored)
    assert store.bad.keys() == REASONS.keys() | whole.bad.keys()
    for name, reason in REASONS.items():
        assert reason in store.bad[name] and str(videos[name]) in store.bad[name]
        assert "Replace or re-encode" in store.bad[name] or "short_side" in store.bad[name]
    assert store.entries.keys() == whole.entries.keys() - REASONS.keys()
    for name, entry in store.entries.items():
        every = np.arange(entry.num_frames)
        np.testing.assert_array_equal(store.read(name, every), whole.read(name, every))
    # A shard that is lost is written again without them, and to the same bytes.
    before = files(tmp_path / "store")
    next((tmp_path / "store").glob("frames-videos*00000-of*")).unlink()
    assert set(run(tmp_path, videos, FAILURES, **options)) <= {"memory", "once"}
    assert files(tmp_path / "store") == before


def test_a_hang_that_holds_the_interpreter_is_ended_too(videos, tmp_path, options):
    videos = {name: videos[name] for name in ("v0.mp4", "v1.mp4")}
    run(tmp_path, videos, {"v1.mp4": "lock"}, **options | {"workers": 1, "limit": 1.0})
    store = FrameStore(tmp_path / "store")
    assert "no new frame for 1 s" in store.bad["v1.mp4"] and set(store.entries) == {"v0.mp4"}


def test_a_slow_video_is_not_taken_for_one_that_hangs(
    videos, stored, tmp_path, options, monkeypatch
):
    monkeypatch.setattr(shard_writer, "TIME_LIMIT", 30)
    report = write_store(tmp_path, videos, workers=1, **options)
    assert files(tmp_path) == files(stored) and set(report.bad) == {"v3.mp4", "v8.mp4"}


def test_time_in_which_the_parent_did_not_look_is_not_the_workers(videos, tmp_path):
    """As after a machine's sleep: the worker, which slept too, has shown no new frame."""
    limit, poll = 1.0, 0.05
    options = StoreOptions(short_side=800, encoding="jpeg", frames_per_record=4)
    task = Task(tmp_path, 0, 1, [("v10.mp4", videos["v10.mp4"])], options, "")
    worker = pool._Worker(shard_writer.write_shard)
    try:
        worker.give(task)
        deadline = time.monotonic() + 60
        while worker.mark < 0:
            assert worker.check(limit, poll) is None and time.monotonic() < deadline
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert worker.check(limit, poll) is None
        time.sleep(1.5 * limit)
        assert worker.check(limit, poll) is None
        for _ in range(2):
            time.sleep(poll)
            assert worker.check(limit, poll) is None  # and is given its whole limit
        until = time.monotonic() + 20
        while (outcome := worker.check(limit, poll)) is None and time.monotonic() < until:
            time.sleep(poll)
        assert outcome[:4] == (task, None, "hung", "no sign of life for 1 s") and outcome.mark == 0
        assert decode.worker_failure(outcome, "a.mp4", limit).startswith(
            "a.mp4: no new frame for 1 s."
        )
    finally:
        worker.end()


def test_tasks_may_be_run_elsewhere(videos, stored, tmp_path, options):
    seen = []

    def elsewhere(tasks):
        seen.extend(task.shard for task in tasks)
        for task in reversed(tasks):
            yield from write_shards([task], 1)

    write_store(tmp_path, videos, run_tasks=elsewhere, **options)
    assert seen == [0, 1, 2] and files(tmp_path) == files(stored)


def test_a_disk_that_is_full_is_named_by_the_parent(videos, tmp_path, options):
    program = textwrap.dedent(f"""
        import resource, time
        from rvllm_jax.data.video import decode as video
        from rvllm_jax.data.store.shards import StoreOptions
        from rvllm_jax.data.store.writer import write_store

        class Slow(video.Decoding):  # of the second shard: it is in work when the first one fails
            def __next__(self):
                time.sleep(0.3 if self._path.name == "v2.mp4" else 0)
                return super().__next__()

        video.Decoding = Slow
        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))  # fails as a full disk does
            write_store({str(tmp_path / "store")!r}, { ({k: str(v) for k, v in videos.items()})!r},
                        workers=2, **{options!r})
    """)
    (tmp_path / "prepare.py").write_text(program)
    result = subprocess.run(
        [sys.executable, tmp_path / "prepare.py"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "StoreWriteError" in result.stderr and "Free some space" in result.stderr
    assert "bytes free in" in result.stderr and "90,000 allowed a file (ulimit -f)" in result.stderr
    assert not list((tmp_path / "store").glob("aside*"))  # no video is to blame
    assert not list((tmp_path / "store").glob("*.tmp"))  # nor is half a shard left, of any worker


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    videos, stored, tmp_path, options, kills
):
    store, rng = tmp_path / "store", random.Random(kills)
    program = textwrap.dedent(f"""
        import time
        from rvllm_jax.data.video import decode as video
        from rvllm_jax.data.store.shards import StoreOptions
        from rvllm_jax.data.store.writer import write_store

        class Slow(video.Decoding):  # so that there is something to be killed at
            def __next__(self):
                time.sleep(0.004)
                return super().__next__()

        video.Decoding = Slow
        if __name__ == "__main__":
            write_store({str(store)!r}, { ({k: str(v) for k, v in videos.items()})!r},
                        workers=2, **{options!r})
    """)
    (tmp_path / "prepare.py").write_text(program)
    command, environment = [sys.executable, tmp_path / "prepare.py"], {"PYTHONPATH": str(ROOT)}
    finished: dict[str, int] = {}
    for _ in range(kills):
        process = subprocess.Popen(command, env=os.environ | environment)
        deadline, begun = time.monotonic() + 60, store.exists() and len(files(store))
        while process.poll() is None and time.monotonic() < deadline:
            if store.exists() and len(list(store.iterdir())) != begun:  # at work
                time.sleep(rng.uniform(0, 0.8))
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*.json")}
        assert finished.items() <= now.items()  # nothing that was finished is done again
        finished = now
    assert subprocess.run(command, env=os.environ | environment, timeout=60).returncode == 0
    assert files(store) == files(stored)


def test_a_process_that_ends_outside_of_any_video_is_no_videos_fault(videos, tmp_path, options):
    # Without the guard the spawned process starts a preparation of its own, and fails.
    program = textwrap.dedent(f"""
        from rvllm_jax.data.store.shards import StoreOptions
        from rvllm_jax.data.store.writer import write_store
        write_store({str(tmp_path / "store")!r}, { ({k: str(v) for k, v in videos.items()})!r},
                    workers=1, **{options!r})
    """)
    (tmp_path / "prepare.py").write_text(program.replace("store'", "store' + __name__"))
    result = subprocess.run(
        [sys.executable, tmp_path / "prepare.py"], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "ended outside of any work" in result.stderr
    assert not list(tmp_path.glob("store*/aside*"))
