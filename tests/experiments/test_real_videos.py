"""The main job on real clips: the plain command, given their folder, learns them by heart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "data" / "real_videos"


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER}: the real clips are not there")
def test_real_videos_are_answered_by_what_is_seen(tmp_path):
    """It shows that the path works for a user's own files, not that anything generalises."""
    command = [sys.executable, "-m", "rvllm_jax.main", "--config=configs/joint.py"]
    command += [
        f"--config.data.videos={FOLDER}",
        f"--config.data.conversations={FOLDER}/llava.json",
    ]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.data.store={tmp_path / 'store'}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=3600,  # of a busy machine; minutes on two free cores
    )
    assert done.returncode == 0, done.stderr[-5000:]
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["set_aside"] == {}
    assert results["counts"]["train"]["all"] == 54
    assert round(54 * results["accuracy"]["train"]["all"]) >= 52, done.stdout
    # "Where does this happen?" of two clips and "What animal is in the video?" of three.
    recurring = results["recurring"]
    assert (recurring["count"], recurring["plain"]) == (5, 1.0), done.stdout
    assert recurring["swapped"] == {"changed": 1.0, "follows": 1.0}, done.stdout
    assert results["controls"]["blind"]["all"] < 1, done.stdout
