"""An evaluation shared by two processes, as two hosts share it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_jax.evaluation.answer_file import AnswerFile
from rvllm_jax.experiments.evaluation import Options, evaluate

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(sys.argv[4], 2, int(sys.argv[5]))
from rvllm_jax.experiments.evaluation import Options, evaluate
options = Options(controls=4, together=1)
print("\\n".join(evaluate(["own"], sys.argv[1], sys.argv[2], sys.argv[3], options)))
"""


@pytest.mark.slow
def test_two_processes_answer_as_one(run_folder, prepared, tmp_path):
    """Each reads its own block of clips; the first one writes the answers of both."""
    evaluate(["own"], str(prepared), str(run_folder), tmp_path / "one", Options(controls=4))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", PROGRAM, prepared, run_folder, tmp_path / "two", address]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    hosts = [
        subprocess.Popen([*map(str, command), host], cwd=ROOT, env=environment)
        for host in ("0", "1")
    ]
    assert [host.wait(timeout=1800) for host in hosts] == [0, 0]

    def answers(folder):
        return {
            (a["question_id"], a["control"]): (a["answer"], a["clips"], a["failed"])
            for a in AnswerFile.read(folder / "own")
        }

    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert len(AnswerFile.read(tmp_path / "two" / "own")) == 23
