"""One writer at a time, by real processes; where a file system has no locks, and on other hosts."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rvllm_jax.system import lock
from rvllm_jax.system.atomic import WriteError
from rvllm_jax.system.lock import LOCK, LockError, locked

WITHOUT_FLOCK = """
    import errno, fcntl
    def flock(*_):
        raise OSError(errno.ENOTSUP, "no locks here")
    fcntl.flock = flock
"""


@pytest.fixture
def start(tmp_path):
    """start(code) -> a process that has printed a line."""
    running = []

    def run(code):
        code = textwrap.dedent(code)
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline()
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def holding(target="run", before="", **how):
    return textwrap.dedent(before) + textwrap.dedent(f"""
        import time
        from rvllm_jax.system.lock import locked
        with locked({target!r}, **{how}):
            print("locked", flush=True)
            time.sleep(600)
    """)


def without_flock(monkeypatch):
    def flock(*_):
        raise OSError(95, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK], ids=["flock", "no flock"])
def test_a_second_writer_is_refused_by_name_and_has_the_folder_once_the_first_is_killed(
    start, tmp_path, monkeypatch, before
):
    if before:
        without_flock(monkeypatch)
    first, run = start(holding(before=before)), tmp_path / "run"
    with pytest.raises(LockError) as error, locked(run, advice="name another --workdir"):
        pytest.fail("two writers")
    for part in (str(run), f"process {first.pid} on host {os.uname().nodename}", "since 20",
                 "python", "or name another --workdir"):  # fmt: skip
        assert part in str(error.value)
    first.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while time.monotonic() < until:  # not reaped: dead all the same
        try:
            with locked(run):
                break
        except LockError:
            time.sleep(0.01)
    else:
        pytest.fail("the lock of a dead process stays")
    assert time.monotonic() < until - 15
    assert list(run.iterdir()) == []


def test_a_process_of_the_same_number_that_was_started_later_holds_nothing(start, tmp_path):
    first = start(holding())
    path = tmp_path / "run" / LOCK
    first.kill()
    first.wait()
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"pid": os.getpid()}))
    with locked(tmp_path / "run"):
        pass


def test_one_writer_of_a_file_beside_which_others_are_written(start, tmp_path):
    first = start(holding("out.jsonl", is_file=True))
    with pytest.raises(LockError, match="out.jsonl: is being written by .*process"):
        locked(tmp_path / "out.jsonl", is_file=True).__enter__()
    with locked(tmp_path / "other.jsonl", is_file=True):
        pass
    first.kill()
    first.wait()
    with locked(tmp_path / "out.jsonl", is_file=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_that_waits_says_for_whom_once_and_goes_on_at_its_end(tmp_path):
    lines, order = [], []

    def second():
        with locked(tmp_path, wait=lines.append):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path):
        thread.start()
        while not lines:
            time.sleep(0.01)
        time.sleep(1.2)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    (line,) = lines
    assert (
        line.startswith(f"{tmp_path}: is being written by `") and f"process {os.getpid()}" in line
    )
    assert list(tmp_path.iterdir()) == []


def test_many_at_once_are_one_after_the_other(start, tmp_path):
    code = """
        import pathlib, time
        from rvllm_jax.system import lock
        from rvllm_jax.system.lock import locked
        lock._POLL = 0.001
        print("ready", flush=True)
        for _ in range(50):
            with locked("run", wait=lambda line: None):
                pathlib.Path("alone").touch(exist_ok=False)
                pathlib.Path("alone").unlink()
        print("done", flush=True)
    """
    processes = [start(code) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["done\n"] * 3
    assert not list(tmp_path.glob("*/*"))


def test_a_lock_that_was_removed_since_it_was_opened_is_none(tmp_path, monkeypatch):
    flock, removed = lock._flock, []

    def late(file):
        if not removed:
            removed.append((tmp_path / LOCK).unlink())  # at its holder's end
        return flock(file)

    monkeypatch.setattr(lock, "_flock", late)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


def elsewhere(path, beat=0.0, **more):
    """A lock of another machine, which gave a sign of life `beat` seconds ago."""
    path.parent.mkdir(exist_ok=True)
    with locked(path.parent / "other"):
        record = json.loads((path.parent / "other" / LOCK).read_text())
    record |= {"host": "worker-3", "machine": "another", "token": "its", "pid": 7} | more
    path.write_text(json.dumps(record | {"beat": f"{time.time() - beat:.3f}"}))
    return record


def test_another_machine_s_lock_that_beats_is_kept(tmp_path, monkeypatch):
    """As on a bucket, whose locks other machines do not see."""
    monkeypatch.setattr(lock, "_POLL", 0.02)
    path, ended = tmp_path / "run" / LOCK, threading.Event()
    record = elsewhere(path)

    def beat():
        while not ended.wait(0.1):
            path.write_text(json.dumps(record | {"beat": f"{time.time():.3f}"}))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockError, match="process 7 on host worker-3"):
            locked(path.parent).__enter__()
    finally:
        ended.set()
        thread.join()


def test_another_machine_s_lock_gives_way_where_it_beats_no_more(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run" / LOCK
    elsewhere(path, beat=lock.STALE + 1)
    with locked(path.parent):  # at once
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(lock, "STALE", 1.0)
    elsewhere(path, beat=-3600.0)  # of a clock that is ahead
    started = time.monotonic()
    with locked(path.parent):
        assert 1.0 < time.monotonic() - started < 5.0
    assert "worker-3" in capsys.readouterr().err


def test_it_beats_and_ends_where_another_has_taken_over(start, tmp_path):
    code = "from rvllm_jax.system import lock; lock.BEAT = 0.1\n" + holding()
    first, path = start(code), tmp_path / "run" / LOCK
    beats = set()
    while len(beats) < 3:
        beats.add(json.loads(path.read_text())["beat"])
        time.sleep(0.02)
    path.unlink()
    elsewhere(path)
    assert first.wait(20) == 1


def test_no_lock_is_needed_where_the_folder_cannot_be_written_but_asked_for_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file: cannot be written .*Name another --out"):
        locked(tmp_path / "file", advice="name another --out").__enter__()
    with pytest.raises(WriteError, match="absent/x: cannot be written"):
        locked(tmp_path / "absent" / "x", is_file=True).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_refused_leaves_no_folder_and_what_stays_is_empty(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "store", stays=True):
        pass
    assert (tmp_path / "store" / LOCK).read_bytes() == b""
    with locked(tmp_path / "store", stays=True):  # as those of earlier versions are
        pass


def test_a_lock_of_an_earlier_version_names_nobody(tmp_path):
    with open(tmp_path / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockError, match="written by another process"):
            locked(tmp_path).__enter__()
