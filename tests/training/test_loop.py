"""The real command on eight small videos: stopped, killed, continued, finished."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from rvllm_jax.training import metrics
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.sigterm import INTERRUPTED

ROOT = Path(__file__).parents[2]
STEPS = 6  # of each of the two stages


@pytest.fixture(scope="module")
def start(workplace, settings, process_groups):
    """start(workdir, **keys) -> the command's process; its output goes to workdir.log."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(workplace / "compiled"),  # by all runs but the first
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(workdir: Path, **changes) -> subprocess.Popen:
        values = settings | {key.replace("__", "."): value for key, value in changes.items()}
        command = [sys.executable, "-m", "rvllm_jax.main", "--config=configs/joint.py"]
        command += [f"--workdir={workdir}"] + [f"--config.{k}={v}" for k, v in values.items()]
        with open(f"{workdir}.log", "w") as log:
            environment = os.environ | cache | {"JAX_PLATFORMS": "cpu"}
            process_groups.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a group of its own, with its workers
                )
            )
        return process_groups[-1]

    return start


@pytest.fixture(scope="module")
def whole(workplace, start):
    """The working directory of a run that nothing stopped; elapsed.txt says how long it took."""
    started = time.monotonic()
    assert start(workplace / "whole").wait() == 0, (workplace / "whole.log").read_text()
    (workplace / "whole" / "elapsed.txt").write_text(str(time.monotonic() - started))
    return workplace / "whole"


def until(process: subprocess.Popen, happens) -> None:
    """Waits for `happens()` while the process runs; it must not have ended."""
    end = time.monotonic() + 300
    while not happens():
        assert process.poll() is None and time.monotonic() < end, "the run ended too early"
        time.sleep(0.001)


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the final checkpoint by name."""
    folder = workdir / "checkpoints" / str(2 * STEPS) / "arrays"
    return ocp.PyTreeCheckpointer().restore(folder)


def position(workdir: Path) -> dict:
    checkpoints = Checkpoints(workdir)
    found = checkpoints.training.read_meta(2 * STEPS)["position"]
    checkpoints.close()
    return {key: value for key, value in found.items() if key != "seconds"}


def assert_same_run(workdir: Path, other: Path) -> None:
    """Parameters, statistics, optimizer, random state, position, records and answers."""
    ours, theirs = arrays(workdir), arrays(other)
    assert ours.keys() == theirs.keys()
    assert {name.split("/")[0] for name in ours} == {"params", "stats", "opt", "key"}
    for name, ours_here in ours.items():
        assert np.asarray(ours_here).tobytes() == np.asarray(theirs[name]).tobytes(), name
    assert position(workdir) == position(other)
    records = metrics.read(workdir / "metrics.jsonl")
    assert records == metrics.read(other / "metrics.jsonl")
    steps = [(r["step"], r["kind"]) for r in records]
    assert len(set(steps)) == len(steps)
    assert [step for step, kind in steps if kind == "train"] == list(range(1, 2 * STEPS + 1))
    results = [json.loads((w / "report" / "results.json").read_text()) for w in (workdir, other)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}


def test_a_run_ends_with_its_report_and_names_what_it_set_aside(whole):
    results = json.loads((whole / "report" / "results.json").read_text())
    assert results["steps"] == 2 * STEPS and list(results["seconds"]) == ["visual", "joint"]
    assert results["counts"]["train"] == {"all": 18, "colour": 6, "number": 6, "existence": 6}
    assert list(results["set_aside"]) == ["bad.mp4"]
    log = Path(f"{whole}.log").read_text()
    assert "| question type | train |" in log and "set aside: bad.mp4" in log
    trains = re.findall(r"stage (\w+) trains [\d,]+ of [\d,]+ parameters: (.*)", log)
    parts = [(stage, re.sub(" [\\d,]+", "", parts)) for stage, parts in trains]
    assert parts == [("visual", "encoder projector"), ("joint", "encoder projector decoder")]
    assert "Async" not in log


def test_the_seconds_of_each_stage_are_those_that_passed(whole):
    seconds = json.loads((whole / "report" / "results.json").read_text())["seconds"].values()
    elapsed = float((whole / "elapsed.txt").read_text())
    assert min(seconds) > 0 and 0.1 * elapsed < sum(seconds) < elapsed


def test_the_learning_rates_in_the_metrics_are_those_of_the_updates(whole, joint):
    stages = joint().stages
    for stage in ("visual", "joint"):
        records = metrics.read(whole / "metrics.jsonl")
        records = [r for r in records if (r["stage"], r["kind"]) == (stage, "train")]
        # Two updates of warm-up from zero, then a cosine to zero over the other four.
        shape = [0, 0.5, *(0.5 + 0.5 * np.cos(np.pi * np.arange(4) / 4))]
        for name, spec in stages[stage].optimizers.items():
            rates = [record[f"lr/{name}"] for record in records]
            np.testing.assert_allclose(rates, spec.lr * np.asarray(shape), rtol=1e-5)


def test_the_best_of_each_stage_is_kept(whole):
    records = [r for r in metrics.read(whole / "metrics.jsonl") if r["kind"] == "validation"]
    checkpoints = Checkpoints(whole)
    for stage in ("visual", "joint"):
        own = {r["step"]: r["loss"] for r in records if r["stage"] == stage}
        assert len(own) == STEPS / 2
        best = min(own, key=own.get)
        assert checkpoints.best[stage].latest() == best
        assert checkpoints.best[stage].read_meta(best)["loss"] == own[best]
        assert position(whole)["best"][stage] == own[best]
    checkpoints.close()


def test_a_run_stopped_by_sigterm_goes_on_bit_for_bit_without_its_worker(workplace, start, whole):
    workdir = workplace / "stopped"
    shutil.copytree(whole / "report", workdir / "report")  # of a run whose checkpoints are gone
    # By its checkpoints it would save at the ends of its stages only: all else is the signal's.
    process = start(workdir, checkpoint__every=100, data__workers=1)
    until(process, (workdir / "best" / "visual" / "2").is_dir)
    os.killpg(process.pid, signal.SIGTERM)  # the worker too, as schedulers do
    assert process.wait() == INTERRUPTED == 75, Path(f"{workdir}.log").read_text()
    checkpoints = Checkpoints(workdir)
    stopped = checkpoints.training.latest()
    assert stopped is not None and 2 <= stopped < 2 * STEPS
    saved = {int(folder.name) for folder in (workdir / "checkpoints").iterdir()}
    assert saved == {stopped} | ({STEPS} if stopped > STEPS else set())  # once
    done = [r["step"] for r in metrics.read(workdir / "metrics.jsonl")]
    assert max(done) == stopped  # nothing was done that was not saved
    assert not (workdir / "report").exists()  # none stands beside a run that it is not of
    checkpoints.close()
    ended = start(workdir).wait()
    log = Path(f"{workdir}.log").read_text()
    assert ended == 0 and f"continuing from the checkpoint of step {stopped}" in log, log
    assert_same_run(workdir, whole)


def kill_when(process: subprocess.Popen, happens) -> None:
    until(process, happens)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_run_killed_in_a_save_and_at_the_boundary_goes_on_bit_for_bit(workplace, start, whole):
    workdir = workplace / "killed"
    saving = workdir / "checkpoints"
    kill_when(start(workdir), lambda: any(saving.glob("4.orbax-checkpoint-tmp*")))
    assert (saving / "2").is_dir() and not (saving / "4").is_dir()
    kill_when(start(workdir), (saving / str(STEPS)).is_dir)
    assert start(workdir).wait() == 0, Path(f"{workdir}.log").read_text()
    assert_same_run(workdir, whole)


def saves(workdir: Path) -> list[str]:
    return sorted(path.name for path in workdir.glob("checkpoints/*"))


@pytest.mark.parametrize(
    "seed, times", [(1, 1), *(pytest.param(seed, 3, marks=pytest.mark.slow) for seed in (0, 2, 3))]
)
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(workplace, start, whole, seed, times):
    rng = np.random.default_rng(seed)
    workdir = workplace / f"random{seed}"
    for _ in range(times):
        before = saves(workdir)
        process = start(workdir)
        while process.poll() is None and saves(workdir) == before:  # it only starts so far
            time.sleep(0.001)
        try:
            process.wait(rng.uniform(0, 6))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
    assert start(workdir).wait() == 0, Path(f"{workdir}.log").read_text()
    assert_same_run(workdir, whole)


def test_a_finished_run_does_not_train_again_and_prints_its_table(start, whole):
    before = {p: p.stat().st_mtime_ns for p in (whole / "report").iterdir()}
    checkpoints = sorted((whole / "checkpoints").iterdir())
    records = (whole / "metrics.jsonl").read_bytes()
    assert start(whole).wait() == 0
    log = Path(f"{whole}.log").read_text()
    assert "| question type | train |" in log and "nothing left to do" in log
    assert "parameters train" not in log  # no step was compiled
    assert before == {p: p.stat().st_mtime_ns for p in (whole / "report").iterdir()}
    assert checkpoints == sorted((whole / "checkpoints").iterdir())
    assert records == (whole / "metrics.jsonl").read_bytes()


def test_a_working_directory_of_another_configuration_is_refused_by_its_key(start, whole):
    assert start(whole, seed=1, evaluation__max_new=5).wait() not in (0, INTERRUPTED)
    log = Path(f"{whole}.log").read_text()
    assert "belongs to another configuration" in log and "--workdir" in log
    assert "seed: 0 there, 1 now" in log and "evaluation.max_new: 4 there, 5 now" in log
