"""Threads that judge, without a server."""

import threading

import pytest

from rvllm_jax.evaluation.judge.run import judge_items
from rvllm_jax.evaluation.judge.verdicts import Verdict, items
from rvllm_jax.system.lines import JsonLines


def test_an_error_of_our_own_stops_all_threads(answer, tmp_path):
    stop, asked = threading.Event(), []

    def faulty(item):
        asked.append(item.question_id)
        if item.question_id == "q3":
            raise OSError("disk full")
        if len(asked) > 3:
            stop.wait(0.2)
        return Verdict(correct=True)

    some = items(answer(f"q{n}") for n in range(30))
    with JsonLines(tmp_path / "x.jsonl") as file, pytest.raises(OSError, match="disk full"):
        judge_items(some, faulty, file, {}, concurrency=2, stop=stop)
    assert len(asked) < 10
