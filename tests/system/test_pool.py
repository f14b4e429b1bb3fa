"""Watched workers: what a job may do to its process, and what the others keep."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.pool import CRASHED, HUNG, KILLED, WatchedPool, WorkerError

ROOT = Path(__file__).parents[2]


def work(job, beat):
    """Runs in the workers."""
    beat(7)
    if job == "hang":
        time.sleep(600)
    if job == "slow":  # longer than the limit, with signs of life
        for _ in range(20):
            time.sleep(0.1)
            beat(8)
    if job == "untimed":
        beat(-1)
        time.sleep(1.5)
    if job == "refuse":
        raise RvllmError("a folder that is full")
    if job == "raise":
        raise ValueError("a defect")
    if job in ("SIGKILL", "SIGSEGV"):
        os.kill(os.getpid(), getattr(signal, job))
    if job == "outside":
        beat(-1)
        os._exit(3)
    return job.upper()


@pytest.mark.parametrize("workers", [1, 3])
def test_each_job_ends_with_its_result_or_with_what_became_of_its_process(workers):
    jobs = ["a", "hang", "slow", "raise", "SIGSEGV", "untimed", "SIGKILL", "b"]
    with WatchedPool(work, workers, time_limit=1.0) as pool:
        outcomes = {outcome.job: outcome for outcome in pool.results(jobs)}
    assert set(outcomes) == set(jobs)
    for job in ("a", "slow", "untimed", "b"):
        assert outcomes[job].result == job.upper() and not outcomes[job].failure
    failures = {job: outcome[2:] for job, outcome in outcomes.items() if outcome.failure}
    assert failures == {
        "hang": (HUNG, "no sign of life for 1 s", 7),
        "raise": (CRASHED, "exit code 1", 7),
        "SIGSEGV": (CRASHED, "SIGSEGV", 7),
        "SIGKILL": (KILLED, "SIGKILL", 7),
    }


def test_a_job_that_is_put_back_is_done_again_and_marks_are_shown():
    marks = []
    with WatchedPool(work, 2, time_limit=30.0, on_check=marks.append) as pool:
        done = []
        for outcome in pool.results(["SIGKILL", "slow", "a"]):
            done.append(outcome.job)
            if outcome.failure and done.count("SIGKILL") == 1:
                pool.put("SIGKILL")
        processes = [worker.process for worker in pool._team]
    assert sorted(done) == ["SIGKILL", "SIGKILL", "a", "slow"]
    assert [8] in marks and not any(process.is_alive() for process in processes)


def test_a_refusal_of_the_work_is_raised_here():
    with WatchedPool(work, 1, time_limit=30.0) as pool:
        with pytest.raises(RvllmError, match="a folder that is full"):
            list(pool.results(["a", "refuse", "b"]))
    assert not any(worker.process.is_alive() for worker in pool._team)


def test_a_process_that_ends_outside_of_any_work_is_no_jobs_fault():
    with WatchedPool(work, 1, time_limit=30.0) as pool:
        with pytest.raises(WorkerError, match=r"outside of any work \(exit code 3.*__main__"):
            list(pool.results(["outside"]))


def test_workers_start_without_what_takes_seconds():
    program = "import sys, rvllm_jax.system.pool; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    roots = {name.split(".")[0] for name in done.stdout.split()}
    assert not roots & {"jax", "flax", "tensorflow_datasets", "numpy", "grain"}
