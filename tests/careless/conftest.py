"""Commands that are started many times, each in a fork of a process that is warm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Command:
    """A command to be started many times."""

    def __init__(self, name: str):
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("ended.py"), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def __call__(self, argv, *, file_size=None, home="", limit=60) -> tuple[int, str, float]:
        start = dict(argv=list(map(str, argv)), file_size=file_size, home=str(home), limit=limit)
        self._process.stdin.write(json.dumps(start) + "\n")
        self._process.stdin.flush()
        return tuple(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def command():
    """command(NAME) -> a `Command`, one a name."""
    made = {}

    def make(name: str) -> Command:
        if name not in made:
            made[name] = Command(name)
        return made[name]

    yield make
    for each in made.values():
        each.close()
