"""launch/slurm.sbatch against an srun and an scontrol that note their calls."""

import shlex

import pytest

STAND_IN = """#!/usr/bin/env bash
printf '%q ' "$(basename "$0")" "$@" >> "$CALLS"
echo >> "$CALLS"
[ "$1" = --kill-on-bad-exit=1 ] && exit "$CODE"
exit 0
"""
PROGRAM = (".venv/bin/python", "-m", "rvllm_jax.main", "--multihost")
ARGUMENTS = ("--config=configs/joint.py", "--workdir=a folder", "it's $HOME")


@pytest.fixture
def slurm(tmp_path, stand_in, launch):
    """slurm(*arguments, code=...) -> (the finished process, the calls)."""
    stand_in("srun", STAND_IN)
    stand_in("scontrol", STAND_IN)

    def call(*arguments, code=0, **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        done = launch(
            "slurm.sbatch", *arguments,
            CALLS=str(calls), CODE=str(code), SLURM_JOB_ID="7", **environment,
        )  # fmt: skip
        return done, [shlex.split(line) for line in calls.read_text().splitlines()]

    return call


def test_the_environment_is_made_once_and_the_program_runs_on_every_node(slurm):
    done, (made, ran) = slurm(*ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert made[:5] == ["srun", "--nodes=1", "--ntasks=1", "bash", "-c"]
    assert ran[2:] == [*PROGRAM, *ARGUMENTS]


def test_an_interrupted_job_goes_back_into_the_queue_and_a_failed_one_does_not(slurm):
    done, calls = slurm(*ARGUMENTS, code=75)
    assert done.returncode == 0 and calls[-1] == ["scontrol", "requeue", "7"]
    done, calls = slurm(*ARGUMENTS, code=3)
    assert done.returncode == 3 and len(calls) == 2


def test_a_dry_run_prints_and_wrong_usage_is_refused(slurm, tmp_path):
    done, calls = slurm("--dry_run", *ARGUMENTS)
    assert done.returncode == 0 and calls == []
    made, ran = (shlex.split(line) for line in done.stdout.splitlines())
    assert ran[3:] == [*PROGRAM, *ARGUMENTS]
    done, calls = slurm()
    assert done.returncode == 2 and "at least --config" in done.stderr and calls == []
    done, calls = slurm(*ARGUMENTS, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and "is not the checkout" in done.stderr and calls == []
