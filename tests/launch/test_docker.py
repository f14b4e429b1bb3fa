"""launch/docker.sh against a docker that notes its calls, and the Dockerfile."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"
echo >> "$CALLS"
[ "$1" = run ] && exit "$CODE"
exit 0
"""


def test_it_builds_and_runs_with_the_arguments_as_given(launch, stand_in, tmp_path):
    stand_in("docker", STAND_IN)
    stand_in("mkdir", "#!/bin/sh\n")
    calls = tmp_path / "calls"
    environment = {"CALLS": str(calls), "CODE": "75"}
    arguments = ("--config=configs/joint.py", "--workdir=runs/a b")
    done = launch("docker.sh", "--extra=gpu", "--", *arguments, **environment)
    assert done.returncode == 75, done.stderr
    built, ran = (shlex.split(line) for line in calls.read_text().splitlines())
    assert built[0] == "build" and "EXTRA=gpu" in built
    assert ran[-3:] == ["rvllm_jax:gpu", *arguments] and "--gpus" in ran
    calls.unlink()
    done = launch("docker.sh", "--extra=cpu", "--dry_run", "--", *arguments, **environment)
    assert done.returncode == 0 and not calls.exists() and "--gpus" not in done.stdout
    assert "docker run" in done.stdout
    for wrong in (("--extra=npu", "--", *arguments), ()):
        assert launch("docker.sh", *wrong, **environment).returncode == 2


def test_the_dockerfile_copies_what_there_is_and_its_extras_exist():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)", text, re.M):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{extra}": [' in setup for extra in ("gpu", "tpu"))
