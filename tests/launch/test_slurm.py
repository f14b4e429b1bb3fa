"""launch/slurm.sbatch against an srun and an scontrol that note their calls.

As the real one, srun ends with the highest code of all, and a process that it kills has 137: with
--kill-on-bad-exit=1 the slower ones of those that end with 75.
"""

import shlex

import pytest

STAND_IN = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$CALLS"
echo >> "$CALLS"
[[ " $* " = *" rvllm_jax.main "* ]] || exit 0
[[ "$CODE" != 0 && " $* " != *" --kill-on-bad-exit=0 "* ]] && exit 137
exit "$CODE"
"""
PROGRAM = (".venv/bin/python", "-m", "rvllm_jax.main", "--multihost")
ARGUMENTS = ("--config=configs/joint.py", "--workdir=a folder", "it's $HOME, `id`")


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
        return done, [call.split("\0") for call in calls.read_text().split("\0\n")[:-1]]

    return call


def test_the_environment_is_made_once_and_the_program_runs_on_every_node(slurm):
    done, (made, ran) = slurm(*ARGUMENTS, "a line\nbreak")
    assert done.returncode == 0, done.stderr
    assert made[:5] == ["srun", "--nodes=1", "--ntasks=1", "bash", "-c"]
    assert ran[3:] == [*PROGRAM, *ARGUMENTS, "a line\nbreak"]
    done, calls = slurm(*ARGUMENTS, SLURM_CPUS_PER_TASK="64")  # srun may not take it from sbatch
    assert done.returncode == 0 and all("--cpus-per-task=64" in call for call in calls)


def test_an_environment_that_cannot_be_made_ends_the_job_and_is_not_taken_for_one(
    slurm, stand_in, tmp_path
):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    stand_in("srun", '#!/usr/bin/env bash\nwhile [[ "$1" = --* ]]; do shift; done; exec "$@"\n')
    pip = '#!/bin/sh\n[ "$3" = --version ] && exit 0\nexit 1\n'  # no index can be reached
    (venv / "bin" / "python").write_text(pip)
    (venv / "bin" / "python").chmod(0o755)
    done, calls = slurm(*ARGUMENTS, VENV=str(venv))
    assert done.returncode == 1 and calls == []
    assert [path.name for path in venv.iterdir()] == ["bin"]


def test_an_interrupted_job_goes_back_into_the_queue_and_a_failed_one_does_not(slurm):
    done, calls = slurm(*ARGUMENTS, code=75)
    assert done.returncode == 0 and calls[-1] == ["scontrol", "requeue", "7"]
    done, calls = slurm(*ARGUMENTS, code=3)
    assert done.returncode == 3 and len(calls) == 2


def test_a_dry_run_prints_and_wrong_usage_is_refused(slurm, tmp_path):
    done, calls = slurm("--dry_run", *ARGUMENTS)
    assert done.returncode == 0 and calls == []
    made, ran = (shlex.split(line) for line in done.stdout.splitlines())
    assert ran[4:] == [*PROGRAM, *ARGUMENTS]
    done, calls = slurm()
    assert done.returncode == 2 and "at least --config" in done.stderr and calls == []
    done, calls = slurm(*ARGUMENTS, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and "is not the checkout" in done.stderr and calls == []
