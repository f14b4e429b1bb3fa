import functools
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rvllm_jax.hosts.watch import Watch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def watch(hosts):
    """watch(*numbers, lost_after) -> their watches, and a queue of (host, line, code) of ends."""
    started = []

    def start(*numbers, lost_after):
        ends = queue.Queue()
        for i in numbers:
            told = []
            end = functools.partial(lambda i, told, code: ends.put((i, *told, code)), i, told)
            started.append(Watch(hosts[i], lost_after, told.append, end))
        return started, ends

    yield start
    for one in started:
        one.leave()
        one._thread.join()


def test_a_host_that_gives_no_sign_of_life_ends_the_others(watch):
    watches, ends = watch(0, 1, 2, lost_after=1.5)
    time.sleep(2)
    assert ends.empty()  # all are heard of
    watches[2].leave()
    lines = {ends.get(timeout=20) for _ in range(2)}
    said = "ends, because nothing was heard of host 2 (c) for 1.5 s. What was saved is"
    assert {(i, code) for i, _, code in lines} == {(0, 1), (1, 1)}
    assert all(f"host {i} ({'ab'[i]}) {said}" in line for i, line, _ in lines)


def test_a_host_that_fails_ends_the_others_at_once_with_its_error_and_code(watch):
    watches, ends = watch(0, 1, 2, lost_after=60)
    time.sleep(0.5)
    started = time.monotonic()
    watches[1].fail("TrainingError: 5 rows could not be read", 75)
    lines = {ends.get(timeout=5) for _ in range(2)}
    assert time.monotonic() - started < 5  # not when its signs of life are missed
    assert {(i, code) for i, _, code in lines} == {(0, 75), (2, 75)}
    for _, line, _ in lines:
        assert line.endswith("because host 1 (b) ended: TrainingError: 5 rows could not be read")


def test_host_0_stays_until_the_others_have_heard_why_it_ends(watch):
    watches, ends = watch(0, 1, 2, lost_after=60)
    time.sleep(0.5)
    watches[0].fail("OSError: full", 1)
    assert ends.qsize() == 2


@pytest.mark.parametrize("host, why", [(0, ""), (1, "host 0 (a) is gone, or ")])
@pytest.mark.parametrize(("end", "said"), [("os.abort()", 1), ("word.keep()", 0)])
def test_a_host_that_is_ended_from_outside_leaves_a_line(end, said, host, why):
    program = f"""
import os
from rvllm_jax.hosts.sync import Hosts
from rvllm_jax.hosts.watch import LastWord
word = LastWord(Hosts(None, {host}, ("a", "b")))
{end}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    name = ("0 (a)", "1 (b)")[host]
    line = f"error: host {name} ends, because {why}what runs here was ended from outside"
    assert done.stderr.count(line) == said
    assert done.returncode == (-signal.SIGABRT if said else 0)
