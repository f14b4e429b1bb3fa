"""Two starts on one working directory, and a reader beside one that trains; real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.video import encode
from rvllm_jax.experiments.saved.open import describe_model, open_model
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.training.checkpoint import read_meta
from rvllm_jax.training.workdir import WorkdirError
from rvllm_jax.weights.hf_config import llama_values

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path, compiled):
    """start(**keys) -> a process that trains in tmp_path/run, a checkpoint an update."""
    running = []
    (tmp_path / "videos").mkdir()
    (tmp_path / "decoder").mkdir()
    sizes = llama_values(LlamaConfig(300, 16, 1, 2, 2, 8, 24, context=128), "float32")
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(sizes))
    records = []
    for number in range(4):
        frames = np.full((12, 16, 16, 3), 50 * number, np.uint8)
        encode.write(tmp_path / "videos" / f"{number}.mp4", frames, fps=8)
        said = [("human", "<video>\nWhich is it?"), ("gpt", str(number))]
        turns = [{"from": who, "value": what} for who, what in said]
        records.append({"id": number, "video": f"{number}.mp4", "conversations": turns})
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    given = {
        "model.decoder": tmp_path / "decoder",
        "data.videos": tmp_path / "videos",
        "data.conversations": tmp_path / "train.json",
        "data.test": tmp_path / "test.json",
        "data.store": tmp_path / "store",
        **{"data.frames": 4, "data.interval": 2, "data.stride": 2, "data.short_side": 16},
        **{"data.crop": 16, "data.context": 96, "data.workers": 0, "tokenizer.vocab_size": 300},
        **{"model.grid": 2, "schedule": "joint", "checkpoint.every": 1, "evaluation.every": 100},
        **{"evaluation.controls": False, "evaluation.max_new": 2, "stages.joint.batch": 4},
    }

    def run(**keys):
        given_now = given | {key.replace("__", "."): value for key, value in keys.items()}
        argv = [f"--config.{key}={value}" for key, value in given_now.items()]
        command = [sys.executable, "-m", "rvllm_jax.main", "--config=configs/joint.py"]
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / 'run'}", *argv],
            cwd=ROOT, env=os.environ | compiled | {"JAX_PLATFORMS": "cpu"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()


def steps(run):
    return [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()]


def test_a_second_start_is_refused_a_reader_reads_and_a_killed_one_s_folder_is_taken_up(
    start, tmp_path
):
    run, until = tmp_path / "run", time.monotonic() + 200
    first = start(stages__joint__steps=100_000)
    while not steps(run):
        assert first.poll() is None and time.monotonic() < until, first.communicate()
        time.sleep(0.1)
    config = (run / "config.json").read_text()

    second = start(stages__joint__steps=100_000, seed=1)
    output = second.communicate(timeout=200)[0]
    assert second.returncode == 1 and "Traceback" not in output
    assert re.search(rf"\nLockError: {run}: is being .*process {first.pid} on", f"\n{output}")
    assert (run / "config.json").read_text() == config

    opened = [open_model(run).step for _ in range(5)]
    assert opened == sorted(opened) and opened[-1] > opened[0]

    first.send_signal(signal.SIGKILL)
    first.communicate()
    reached = max(steps(run))
    again = start(stages__joint__steps=100_000)
    while max(steps(run)) < reached + 3:
        assert again.poll() is None and time.monotonic() < until, again.communicate()
        time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    output = again.communicate(timeout=200)[0]
    assert again.returncode == 75 and "continuing from the checkpoint of step" in output
    assert not (run / "lock").exists()

    assert read_meta(run)[1]["config"]["seed"] == 0
    (run / "config.json").write_text(json.dumps(json.loads(config) | {"seed": 1}))
    with pytest.raises(WorkdirError, match=r"config.json: is not of.*\n  seed: 0 there, 1 now"):
        describe_model(run)
    last = start(stages__joint__steps=100_000, seed=1)
    output = last.communicate(timeout=200)[0]
    assert last.returncode == 1 and "WorkdirError: " in output and "seed: 0 there" in output
