"""The command, in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def plan(*arguments: str, config="paper"):
    command = [sys.executable, "-m", "rvllm_jax.plan", f"--config=configs/joint.py:{config}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_one_topology_is_told_in_full():
    done = plan("--topology=v5e:8x8", "--nocompile")
    assert done.returncode == 0, done.stderr
    for said in ("Optimizer", "Peak, by formula", "It fits", "clips/s", "frames/s", "50 epochs"):
        assert said in done.stdout, done.stdout


def test_several_make_a_table_and_end_with_1_where_one_does_not_fit():
    done = plan("--topology=v5e:2x2,h200:1", "--nocompile", "--clips_a_device=1")
    assert done.returncode == 1, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| vicuna")]
    assert [(row[2].strip(), row[3].strip(), row[10].strip()) for row in rows] == [
        ("visual", "v5e:2x2", "yes"), ("joint", "v5e:2x2", "no"),
        ("visual", "h200:1", "yes"), ("joint", "h200:1", "yes"),
    ]  # fmt: skip
    assert "stage joint does not fit" in done.stdout


def test_what_is_wrong_is_said_in_a_line():
    done = plan("--nocompile", "--topology=h100:8", "--stages=final")
    assert done.returncode == 1 and done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "final" in last and "visual" in last


@pytest.mark.parametrize(
    ("given", "said"),
    [("--config.mesh.tensr=2", "'tensor'"), ("--config.model.dtype=bf16", "config.model.dtype")],
)
def test_a_configuration_that_is_wrong_is_told_in_words_alone(given, said):
    done = plan("--nocompile", "--topology=h200:1", given)
    assert done.returncode == 1 and done.stdout == ""
    assert said in done.stderr and "Traceback" not in done.stderr, done.stderr
