"""The launchers, with recording stand-ins for the programs that they call on PATH."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, timeout=..., **environment) -> the finished process."""

    def call(script, *arguments, timeout=120, **environment):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [ROOT / "launch" / script, *arguments],
            env=os.environ | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    (tmp_path / "bin").mkdir()
    return call


@pytest.fixture
def stand_in(tmp_path):
    """stand_in(name, text): an executable of this name, first on PATH."""

    def make(name, text):
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    return make
