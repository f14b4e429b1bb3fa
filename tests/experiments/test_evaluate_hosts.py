"""The real command on two hosts, which are processes on loopback with eight devices in all."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_jax.evaluation.answers.answer_file import AnswerFile
from rvllm_jax.experiments.benchmark_run import EvaluationOptions
from rvllm_jax.experiments.evaluate import evaluate

ROOT = Path(__file__).parents[2]
NAME = socket.gethostname()
pytestmark = pytest.mark.slow


@pytest.fixture
def on_two_hosts(run_folder, prepared, tmp_path):
    """on_two_hosts(out, *flags, host_1=flags of host 1 alone) -> exit codes, and what each said."""
    processes = []

    def run(out: Path, *given: str, host_1=()):
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        command = [sys.executable, "-m", "rvllm_jax.evaluate", "--benchmarks=own", "--controls=4"]
        command += [f"--data={prepared}", f"--model={run_folder}", f"--out={out}", *given]
        command += [f"--coordinator=localhost:{port}", "--hosts=2", "--lost_after=20"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
        logs = [tmp_path / f"{port}.{host}.log" for host in (0, 1)]
        own = []
        for host, log in enumerate(logs):
            with log.open("w") as stream:
                here = [*command, f"--host={host}", *(host_1 if host else ())]
                own.append(
                    subprocess.Popen(here, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
                )
        processes.extend(own)
        return [process.wait(600) for process in own], [log.read_text() for log in logs]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def answers(folder: Path):
    return {
        (a["question_id"], a["control"]): (a["answer"], a["clips"], a["failed"])
        for a in AnswerFile.read(folder / "own")
    }


@pytest.fixture(scope="module")
def alone(run_folder, prepared, tmp_path_factory):
    """The answers of one process with eight devices."""
    out = tmp_path_factory.mktemp("alone")
    evaluate(
        ["own"], str(prepared), str(run_folder), out, EvaluationOptions(controls=4, together=1)
    )
    return out


@pytest.mark.parametrize("mesh", [(), ("--fsdp=2", "--tensor=4")])
def test_two_hosts_answer_as_one_and_go_on_where_one_stopped(on_two_hosts, alone, tmp_path, mesh):
    """Each reads its own rows, or both the same where they share each array; host 0 writes."""
    out = tmp_path / "two"
    if not mesh:  # of what one process began, a part is there
        shutil.copytree(alone, out)
        path = out / "own" / "answers.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:9]))
    codes, said = on_two_hosts(out, "--together=1", *mesh)
    assert codes == [0, 0], "\n=====\n".join(said)
    assert answers(out) == answers(alone)
    assert len(AnswerFile.read(out / "own")) == 23
    assert json.loads((out / "own" / "info.json").read_text())["complete"]
    assert "11 questions answered" in said[0] and "questions answered" not in said[1]


def test_hosts_that_differ_or_refuse_end_together_and_say_why(on_two_hosts, prepared, tmp_path):
    codes, said = on_two_hosts(tmp_path / "differ", host_1=["--clips=25x1"])
    assert codes == [1, 1]
    for text in said:
        line = f"--clips: '1x1' on host 0 ({NAME}), '25x1' on host 1 ({NAME})"
        assert "refused: the hosts differ" in text and line in text
    missing = tmp_path / "nothing"
    codes, said = on_two_hosts(tmp_path / "refused", host_1=[f"--data={missing}"])
    assert codes == [1, 1]
    refused = f"refused: {missing}: holds no prepared benchmark"
    assert refused in said[1] and f"host 1 ({NAME}) ended: {refused}" in said[0]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "differ").exists() and not (tmp_path / "refused").exists()
