"""What lies in the archives of this folder, unpacked, and the commands of this version on it."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
COMMANDS = json.loads((HERE / "commands.json").read_text())


class Place:
    """A folder with what lay in an archive, its texts naming this folder."""

    def __init__(self, folder: Path, *archives: str):
        self.folder = folder.resolve()
        for archive in archives:
            with tarfile.open(HERE / f"{archive}.tar.xz") as tar:
                tar.extractall(self.folder, filter="data")
        for path in self.files("."):
            content = path.read_bytes()
            if b"@FOLDER@" in content:
                status = path.stat()
                path.write_bytes(content.replace(b"@FOLDER@", str(self.folder).encode()))
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def files(self, name: str) -> list[Path]:
        found = (self.folder / name).rglob("*")
        return sorted(path for path in found if path.is_file() and not path.is_symlink())

    def state(self, name: str) -> dict[Path, tuple]:
        """Of all files below `name`, what changes where one is written anew."""
        states = {path: path.stat() for path in self.files(name)}
        return {
            path: (status.st_ino, status.st_mtime_ns, path.read_bytes())
            for path, status in states.items()
        }

    def blank(self, name: str) -> None:
        """Takes what is in the files away, so that whoever looks into them fails; their sizes and
        times stay."""
        for path in self.files(name):
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def run(self, command: str | list[str], code: int = 0) -> tuple[str, str]:
        """The two outputs of a command, or of the one of this name in commands.json."""
        texts = COMMANDS[command] if isinstance(command, str) else command
        texts = [text.replace("@FOLDER@", str(self.folder)) for text in texts]
        texts = [text.replace("@ROOT@", str(ROOT)) for text in texts]
        started = [sys.executable, "-m", f"rvllm_jax.{texts[0]}", *texts[1:]]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            started, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout, done.stderr


@pytest.fixture
def opened(tmp_path) -> Callable[..., Place]:
    """Unpacks the archives of these names together."""
    return lambda *archives: Place(tmp_path, *archives)
