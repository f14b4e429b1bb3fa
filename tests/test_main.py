"""The command: its overrides, what a working directory may change, and SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

from rvllm_jax import main
from rvllm_jax.config import ConfigError
from rvllm_jax.training.checkpoint import WorkdirError, claim
from rvllm_jax.training.interrupt import INTERRUPTED

JOINT = Path(__file__).parents[1] / "configs" / "joint.py"
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def parsed(monkeypatch, *overrides: str):
    argv = ["main", f"--config={JOINT}", *overrides]
    monkeypatch.setattr(sys, "argv", argv)  # config_flags looks for overrides there
    with flagsaver.flagsaver():
        main.parse(argv)
        return main.CONFIG.value


def test_an_override_of_an_unknown_key_is_refused_by_its_whole_name(monkeypatch):
    assert parsed(monkeypatch, "--config.data.frames=4").data.frames == 4
    for given in ("--config.data.fames=4", "--noconfig.data.fames"):
        with pytest.raises(ConfigError, match=r"--config\.data\.fames.*'frames'.*Known are"):
            parsed(monkeypatch, given)


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
        ("mesh", "fsdp", True),
    ):
        changed = json.loads(json.dumps(config))
        changed[section][key] = "another"
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
