"""launch/tpu_vm.sh against a gcloud that notes its calls and has two folders for workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OPTIONS = ("--name=job", "--zone=here", "--type=v5litepod-16", "--poll=0.1")
ODD = """--workdir=a folder/with 'quotes', "more", $HOME, `id`, \\ and\na line break"""
ARGUMENTS = ("--", "--config=configs/joint.py", ODD)


@pytest.fixture
def cloud(tmp_path, stand_in, launch):
    """cloud(*arguments, plan=...) -> (the finished process, gcloud's calls)."""
    stand_in("gcloud", f'#!/bin/sh\nexec {sys.executable} {HERE / "gcloud_stand_in.py"} "$@"\n')
    (tmp_path / "state.json").write_text(json.dumps({"queued": "", "slice": "", "asked": 0}))

    def call(*arguments, timeout=120, **plan):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        (tmp_path / "calls.jsonl").unlink(missing_ok=True)
        done = launch("tpu_vm.sh", *arguments, CLOUD=str(tmp_path), timeout=timeout)
        calls = tmp_path / "calls.jsonl"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [" ".join(json.loads(line)[3:5]) for line in lines]

    return call


def both(code):
    return {"worker0": code, "worker1": code}


def test_a_job_runs_from_the_order_to_the_end_of_its_log(cloud, tmp_path):
    done, calls = cloud("run", *OPTIONS, "--spot", *ARGUMENTS, codes=[both(0)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("start on worker0") == 1 and "worker1" not in done.stdout
    assert done.stdout.count("step 1") == 1
    assert "job is left as it is, and paid for" in done.stderr
    assert calls[:3] == ["describe job", "create job", "describe job"]
    order = json.loads((tmp_path / "calls.jsonl").read_text().splitlines()[1])
    assert {"--spot", "--accelerator-type=v5litepod-16", "--zone=here"} <= set(order)
    assert "--runtime-version=v2-alpha-tpuv5-lite" in order
    for worker in ("worker0", "worker1"):
        given = (tmp_path / worker / "arguments").read_text().split("\0")
        assert given == ["-m", "rvllm_jax.main", "--multihost", *ARGUMENTS[1:], ""]
        assert (tmp_path / worker / "rvllm_jax" / "configs" / "joint.py").is_file()


def test_a_preempted_job_goes_on_on_new_machines(cloud, tmp_path):
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=[both("runs"), both(0)], preempt_at=3)
    assert done.returncode == 0, done.stderr
    assert calls.count("create job") == 2 and calls.count("delete job") == 1
    assert calls.index("delete job") < len(calls) - calls[::-1].index("create job") - 1
    assert "going on from the last checkpoint" in done.stderr
    assert (tmp_path / "worker1.starts").read_text() == "xx"


def test_an_interrupted_program_is_started_again_on_the_same_machines(cloud):
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=[both(75), both(0)])
    assert done.returncode == 0, done.stderr
    assert calls.count("create job") == 1 and "delete job" not in calls
    done, _ = cloud(
        "run", *OPTIONS, "--restarts=1", *ARGUMENTS, codes=[both(0)] * 2 + [both(75)] * 2
    )
    assert done.returncode == 1 and "more than --restarts=1" in done.stderr


def test_one_failing_worker_ends_the_job_and_its_log_is_shown(cloud, tmp_path):
    codes = [{"worker0": "runs", "worker1": 3}]
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=codes)
    assert done.returncode == 1
    assert "a worker ended with code 3" in done.stderr
    assert "start on worker1" in done.stderr
    assert calls.count("create job") == 1
    # The other one was told to save and end.
    for _ in range(100):
        if (tmp_path / "worker0" / "rvllm_jax" / "run.rc").exists():
            break
    done, _ = cloud("status", *OPTIONS, codes=codes)
    assert "slice: READY" in done.stdout and "75 3" in done.stdout


def test_a_worker_that_was_started_anew_ends_the_others_and_all_go_on(cloud, tmp_path):
    codes = [{"worker0": "late", "worker1": "vanishes"}, both(0)]
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=codes)
    assert done.returncode == 0, done.stderr
    assert "going on from the last checkpoint" in done.stderr and "delete job" not in calls
    assert (tmp_path / "worker0.starts").read_text() == "xx"


def test_what_runs_already_is_followed_and_nothing_is_started_beside_it(cloud, tmp_path):
    codes = [both("slow")] * 2
    cloud("create", *OPTIONS)
    done, _ = cloud("start", *OPTIONS, *ARGUMENTS, codes=codes)
    assert done.returncode == 0, done.stderr
    again, _ = cloud("start", *OPTIONS, *ARGUMENTS, codes=codes)
    assert again.returncode != 0 and "the program runs already on" in again.stderr
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=codes)  # as behind a Ctrl-C
    assert done.returncode == 0, done.stderr
    assert "the program runs on job already" in done.stderr and done.stdout.count("step 1") == 1
    assert (tmp_path / "worker0.starts").read_text() == "x"
    assert not any("tar.gz" in call for call in calls)


def test_a_slice_lost_while_it_is_waited_for_is_ordered_anew(cloud):
    states = ["", "PROVISIONING", "SUSPENDED", ""]
    done, calls = cloud("create", *OPTIONS, states=states)
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls if "describe" not in call] == (
        ["create", "delete", "create"]
    )
    assert "job: PROVISIONING; waiting" in done.stderr


def test_what_somebody_deleted_is_not_ordered_and_paid_for_anew(cloud):
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=[both("runs")], deleted_at=3)
    assert done.returncode == 1 and calls.count("create job") == 1
    assert "job was deleted, not preempted" in done.stderr


def test_where_gcloud_cannot_say_nothing_is_ordered_or_deleted(cloud):
    with pytest.raises(subprocess.TimeoutExpired) as waited:
        cloud("run", *OPTIONS, *ARGUMENTS, codes=[both(0)], fails="describe", timeout=3)
    said = waited.value.stderr.decode()
    assert "refreshing your tokens" in said and "job: UNKNOWN; waiting" in said
    assert waited.value.stdout is None


def test_a_checkout_that_cannot_be_packed_reaches_no_worker(cloud, stand_in, tmp_path):
    stand_in("git", "#!/bin/sh\necho 'fatal: not a git repository' >&2\nexit 128\n")
    done, calls = cloud("run", *OPTIONS, *ARGUMENTS, codes=[both(0)])
    assert done.returncode == 1 and "not a git repository" in done.stderr
    assert not any("tar.gz" in call for call in calls)
    assert not (tmp_path / "worker0.starts").exists()


@pytest.mark.parametrize("fails", ["scp", "pip"])
def test_machines_that_are_there_but_cannot_be_prepared_are_given_up(cloud, tmp_path, fails):
    given = (*OPTIONS, "--restarts=3", *ARGUMENTS)
    done, calls = cloud("run", *given, codes=[both(0)], fails=fails)
    assert done.returncode == 1
    assert "installing or starting failed three times on job" in done.stderr
    assert calls.count("create job") == 1 and "delete job" not in calls
    assert sum("rvllm_jax.tar.gz" in call for call in calls) == 3
    unpacked = (tmp_path / "worker1" / "rvllm_jax" / "launch").exists()
    assert unpacked == (fails == "pip")  # behind a failed copy nothing is


def test_a_dry_run_calls_nothing_and_prints_every_command(cloud, tmp_path):
    done, calls = cloud("run", *OPTIONS, "--bucket=b", "--dry_run", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert calls == [] and not (tmp_path / "worker0").exists()
    lines = done.stdout.splitlines()
    assert all(line.startswith("+ gcloud compute tpus ") for line in lines)
    for kind in ("queued-resources create", "tpu-vm scp", "tpu-vm ssh"):
        assert any(f" {kind} " in line for line in lines)
    assert "gcsfuse" in done.stdout and "rvllm_jax.main" in done.stdout
    for command in ("stop", "delete"):
        done, calls = cloud(command, *OPTIONS, "--dry_run")
        assert done.returncode == 0 and calls == [] and "+ gcloud" in done.stdout


def test_wrong_usage_is_refused_before_anything_is_called(cloud):
    for arguments, message in (
        (("run", "--zone=here"), "--name is missing"),
        (("run", "--name=job"), "--zone is missing"),
        (("go", *OPTIONS), "unknown command 'go'"),
        (("run", *OPTIONS, "--preemptible"), "unknown option --preemptible"),
        (("create", "--name=job", "--zone=here"), "--type is missing"),
        (("create", "--name=job", "--zone=here", "--type=gpu"), "--type=gpu is unknown"),
        (("start", *OPTIONS), "nothing follows --"),
        (("run", *OPTIONS), "nothing follows --"),
        (("run", *OPTIONS, "--restarts=x", *ARGUMENTS), "--restarts=x: expected a whole number"),
        (("run", *OPTIONS, "--poll=often", *ARGUMENTS), "--poll=often: expected seconds"),
    ):
        done, calls = cloud(*arguments)
        assert done.returncode == 2 and message in done.stderr, arguments
        assert calls == []
