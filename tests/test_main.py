"""The command: its overrides, what a working directory may change, and SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver

from rvllm_jax import main
from rvllm_jax.config import cli
from rvllm_jax.config.check import ConfigError
from rvllm_jax.data.video import encode
from rvllm_jax.system.lock import locked
from rvllm_jax.training.sigterm import INTERRUPTED
from rvllm_jax.training.workdir import WorkdirError, claim

JOINT = Path(__file__).parents[1] / "configs" / "joint.py"
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def parsed(monkeypatch, *overrides: str):
    argv = ["main", f"--config={JOINT}", *overrides]
    monkeypatch.setattr(sys, "argv", argv)  # config_flags looks for overrides there
    with flagsaver.flagsaver():
        cli.parse(argv)
        return main.CONFIG.value


def test_an_override_of_an_unknown_key_is_refused_by_its_whole_name(monkeypatch):
    assert parsed(monkeypatch, "--config.data.frames=4").data.frames == 4
    for given in ("--config.data.fames=4", "--noconfig.data.fames"):
        with pytest.raises(ConfigError, match=r"--config\.data\.fames.*'frames'.*Known are"):
            parsed(monkeypatch, given)


def test_help_lists_the_flags_and_every_key_of_a_configuration(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", "--help"])
    app.define_help_flags()  # as app.run does
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        cli.parse(["main", "--help"])
    shown = capsys.readouterr().out
    assert "  --config.data.frames: T, frames a clip\n    (int, frames, >= 1)\n" in shown
    assert "  --config.stages.STAGE.warmup: " in shown and "(int, updates, >= 0; 0)" in shown


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("--config.data.stride=4", "ConfigError"),
        ("--config.data.strides=4", "ConfigError"),
        ("--cache=gs://bucket/programs", "PathError"),
    ],
)
def test_what_is_refused_is_told_in_words_alone(tmp_path, given, error):
    command = [sys.executable, "-m", "rvllm_jax.main", f"--config={JOINT}", given]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and f"\n{error}: " in f"\n{done.stderr}"
    assert given[2:].partition("=")[0] in done.stderr


def test_a_second_start_is_refused_before_it_writes_and_names_the_first(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rvllm_jax.main", f"--config={JOINT}", f"--workdir={run}"]
    with locked(run):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert [path.name for path in run.iterdir()] == ["lock"]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"LockError: {run}: is being written by `") and "--workdir" in last
    assert f"(process {os.getpid()} on host " in last


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data=3"], "data=3 fsdp=1 tensor=1 does not cover the 8 devices"),
        (["data=-1", "fsdp=-1"], "one of them may be -1"),
        (["data=1", "tensor=8"], "heads=4, kv_heads=2; set it to a divisor of 2"),
    ],
)
def test_a_mesh_that_does_not_go_with_the_devices_is_told_in_words(tmp_path, given, said):
    command = [sys.executable, "-m", "rvllm_jax.main", f"--config={JOINT}"]
    command += [f"--config.mesh.{size}" for size in given]
    eight = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/run", f"--config.data.store={tmp_path}/data"],
        env={**os.environ, "XLA_FLAGS": eight, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("MeshError: config.mesh")
    assert said in done.stderr and not (tmp_path / "data").exists()


def test_a_working_directory_keeps_all_that_changes_its_results(tmp_path, joint):
    config = joint().to_dict()
    claim(tmp_path, config, ignore=main.MAY_CHANGE)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    for section, key, may in (
        ("data", "frames", False),
        ("data", "conversations", False),
        ("data", "test", True),
        ("data", "workers", True),
        ("model", "tokens", False),
        ("stages", "joint", False),
        ("evaluation", "max_new", False),
        ("evaluation", "fusion", True),
        ("mesh", "fsdp", True),
    ):
        changed = json.loads(json.dumps(config))
        changed[section][key] = "another"
        changed["parallel"] = "pmap"  # that may always
        if may:
            claim(tmp_path, changed, ignore=main.MAY_CHANGE)
            claim(tmp_path, config, ignore=main.MAY_CHANGE)
        else:
            with pytest.raises(WorkdirError, match=rf"{section}\.{key}"):
                claim(tmp_path, changed, ignore=main.MAY_CHANGE)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_run_ended_before_training_has_its_code_and_leaves_no_process(tmp_path, sent, code):
    command = [sys.executable, "-m", "rvllm_jax.main", f"--config={JOINT}"]
    command += [f"--workdir={tmp_path}/run", f"--config.data.store={tmp_path}/data"]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        videos, until = tmp_path / "data" / "shapes" / "videos", time.monotonic() + 120
        while not list(videos.glob("*.mp4")):  # its workers are rendering
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        run.send_signal(sent)
        assert run.wait(60) == code
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < until:
                os.killpg(run.pid, 0)  # still somebody there
                time.sleep(0.1)
    finally:
        try:
            os.killpg(run.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_show_prompt_prints_what_is_trained_on_and_trains_nothing(tmp_path):
    encode.write(tmp_path / "a.mp4", np.full((12, 72, 72, 3), 128, np.uint8), fps=4)
    said = [
        ("human", "<video>\nIs it grey?"),
        ("gpt", "Yes, all."),
        ("human", "Sure?"),
        ("gpt", "Oh"),
    ]
    turns = [{"from": who, "value": what} for who, what in said]
    (tmp_path / "c.json").write_text(json.dumps([dict(id="c", video="a.mp4", conversations=turns)]))
    command = [sys.executable, "-m", "rvllm_jax.main", f"--config={JOINT}", "--show_prompt=3"]
    command += [f"--workdir={tmp_path}/run", f"--config.data.videos={tmp_path}"]
    command += [f"--config.data.conversations={tmp_path}/c.json", f"--config.data.store={tmp_path}"]
    command += ["--config.tokenizer.vocab_size=300", "--config.data.max_bad=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("|", "")
    for text in (". Is it grey?", "=  Yes, all.</s>", ". Sure?", "=  Oh</s>", "visual tokens>"):
        assert text in shown
    assert "stage.input='video'" in shown and "stage.input='caption_in_slot'" in shown
    assert not (tmp_path / "run" / "checkpoints").exists()
