"""The order of the batches over workers, hosts and restarts; and what processes leave behind."""

import hashlib
import itertools
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.batches import loader
from rvllm_jax.data.batches.dataset import UNREADABLE
from rvllm_jax.data.store.reader import FrameStore

ROOT = Path(__file__).parents[3]
STREAM = dict(seed=7, batch=4, steps=12)


@pytest.fixture(autouse=True)
def in_memory(monkeypatch):
    """Small batches too are put together in memory of their own."""
    monkeypatch.setattr(loader, "_LARGE", 0)


def digest(batch, rows=slice(None)) -> list[str]:
    """What is in each row of a batch."""
    fields = [np.asarray(field)[rows] for field in batch]
    return [
        hashlib.sha256(b"".join(field[row].tobytes() for field in fields)).hexdigest()
        for row in range(len(fields[0]))
    ]


def rows_of(dataset, **options) -> list[list[str]]:
    batches = loader.train_batches(dataset, **STREAM, **options)
    return [digest(batch) for batch in batches]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_hosts_and_any_restart_gives_the_same_rows(make, hosts):
    dataset = make()
    alone = rows_of(dataset)
    assert len(set(itertools.chain(*alone))) > 20
    for start in (0, 1, 7):
        parts = [rows_of(dataset, host=h, hosts=hosts, start_step=start) for h in range(hosts)]
        joined = [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
        assert joined == alone[start:]


def host_process(dataset, options, queue) -> None:
    loader._LARGE = 0
    queue.put((options["host"], rows_of(dataset, **options)))


def test_hosts_of_their_own_processes_and_workers_join_to_the_batches_of_one(make):
    dataset = make()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    options = [dict(host=host, hosts=2, start_step=2, workers=host + 1) for host in range(2)]
    started = [context.Process(target=host_process, args=(dataset, own, queue)) for own in options]
    for process in started:
        process.start()
    parts = dict(queue.get(timeout=120) for _ in started)
    for process in started:
        process.join()
    assert [len(parts[host]) for host in range(2)] == [10, 10]
    joined = [parts[0][k] + parts[1][k] for k in range(10)]
    assert joined == rows_of(dataset)[2:]


def test_damaged_records_leave_every_other_row_and_resuming_as_they_were(
    clips_folder, make, tmp_path
):
    for file in clips_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sound, store = make(), FrameStore(tmp_path)
    content = bytearray(store.path("c.mp4").read_bytes())
    content[1000 :: len(content) // 9] = bytes(len(content[1000 :: len(content) // 9]))
    store.path("c.mp4").write_bytes(content)
    damaged, hit = make(store=store), 0
    streams = [list(loader.train_batches(d, **STREAM)) for d in (sound, damaged)]
    for before, after in zip(*streams, strict=True):
        bad = after.errors == UNREADABLE
        assert (after.examples == before.examples).all() and (after.examples[bad] == 2).all()
        assert digest(after, ~bad) == digest(before, ~bad)
        assert not after.frames[bad].any() and not after.weights[bad].any()
        hit += bad.sum()
    assert hit >= 4
    assert rows_of(damaged, start_step=3) == [digest(batch) for batch in streams[1][3:]]


PROGRAM = """
import os, pickle, sys, time, multiprocessing
from rvllm_jax.data.batches import loader
if __name__ == "__main__":
    dataset = pickle.load(open(sys.argv[1], "rb"))
    batches = loader.train_batches(dataset, seed=0, batch=72, steps=10**6, workers=2)
    kept = [next(batches) for _ in range(9)]
    pids = [process.pid for process in multiprocessing.active_children()]
    for pid in [os.getpid(), *pids]:
        maps = open(f"/proc/{pid}/maps").read()
        assert "memfd:batches" in maps and "/dev/shm/psm" not in maps, maps
    print(*pids, flush=True)
    if sys.argv[2] == "killed":
        time.sleep(600)
    if sys.argv[2] == "raises":
        raise RuntimeError("on purpose")
"""


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")")[1].split()[0] != "Z"


@pytest.mark.parametrize("end", ["left", "raises", "killed"])
def test_a_stream_that_is_broken_off_leaves_no_process_and_no_memory(make, tmp_path, end):
    (tmp_path / "dataset").write_bytes(pickle.dumps(make(crop=36)))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", "dataset", end]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        if end == "killed":
            process.send_signal(signal.SIGKILL)
        *_, errors = process.communicate(timeout=60)
    assert len(pids) == 2, errors
    assert process.returncode == {"left": 0, "raises": 1, "killed": -signal.SIGKILL}[end]
    assert "leaked shared_memory" not in errors
    limit = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < limit, "the workers outlive the process that they work for"
        time.sleep(0.05)


def resident() -> float:
    """MB of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_thousand_batches_take_no_more_memory_than_the_first(make, workers):
    dataset = make(crop=36)
    batches = loader.train_batches(dataset, seed=0, batch=72, steps=2050, workers=workers)
    if not workers:
        batches = itertools.islice(batches, 250)  # as far as the time allows
    for _ in range(50):
        next(batches)
    before = resident()
    count = sum(1 for _ in batches)
    assert count == (2000 if workers else 200)
    assert resident() - before < 50
