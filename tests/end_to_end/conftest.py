"""Commands that are killed at random moments and started again, and what their folders hold."""

import contextlib
import dataclasses
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import pytest
from tensorboardX.proto.event_pb2 import Event

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("KILLS_SEED", time.time_ns() % 10**6))  # of all moments
KILLS = int(os.environ.get("KILLS", 10))  # of each command
PATIENCE = 600  # seconds until a start has ended by itself
OF_THE_MOMENT = {"seconds", "date", "dates", "created"}  # keys of what differs between two starts


class End(NamedTuple):
    """How a start ended: its exit code, and how many changes it had made to its folder."""

    code: int
    changes: int


class Warm:
    """A process that has imported what a command imports, and forks for each start of it."""

    def __init__(self, command: str, folder: Path, log: Path, environment: dict, *modules: str):
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm.py"), command, folder, *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert self._line() == "ready"
        self.pid = 0

    def start(self, argv: list[str], cut: int = 0) -> None:
        start = {"argv": argv, "log": str(self.log), "cut": cut}
        self._process.stdin.write(json.dumps(start).encode() + b"\n")
        self._process.stdin.flush()
        self.pid = int(self._line())

    def end(self, seconds: float = PATIENCE) -> End | None:
        """How the start has ended within `seconds`; None: it goes on."""
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        self.pid = 0
        return End(*map(int, self._line().split()))

    def kill(self, number: int, alone: bool = False) -> End:
        """alone: not its group, so that its workers are left behind."""
        with contextlib.suppress(ProcessLookupError):  # it may not lead its group yet
            os.kill(self.pid, number) if alone else os.killpg(self.pid, number)
        end = self.end()
        assert end is not None, f"goes on after signal {number}: {self.log.read_text()[-3000:]}"
        return end

    def close(self) -> None:
        if self.pid:
            self.kill(signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        return self._process.stdout.readline().decode().strip()


@dataclasses.dataclass
class Killed:
    """A command that is killed and started again until its work is done.

    out: the folder that it writes. code: with which it ends. inputs: what the folder holds before.
    cleared: called when it is as before; check: when all is done, with the number of kills since.
    """

    command: str
    argv: list[str]
    out: Path
    warm: Warm
    code: int = 0
    inputs: Path | None = None
    cleared: Callable[[], None] = lambda: None
    check: Callable[[int], None] = lambda killed: None
    whole: dict = dataclasses.field(default_factory=dict)  # what an unbroken start leaves
    seconds: float = 0.0  # that it takes
    changes: int = 0  # that it makes
    on_disk: set = dataclasses.field(default_factory=set)  # lines that were there at a kill
    killed: int = 0  # since it was begun anew
    starts: int = 0
    finished: int = 0
    codes: list = dataclasses.field(default_factory=list)

    def unbroken(self) -> None:
        """Twice: the first start compiles."""
        for _ in range(2):
            self.clear()
            began = time.monotonic()
            self.start()
            end = self.warm.end()
            self.seconds, self.changes = time.monotonic() - began, end.changes
            assert end.code == self.code, self.warm.log.read_text()
            before, self.whole = self.whole, content(self.out)
            assert before in ({}, self.whole), differences(before, self.whole)

    def kills(self, how: str) -> None:
        """Kills it at moments of the time that it takes, or ("changes") before changes of files.

        They are spread over its beginning, middle and end. Of a start that ends before its moment
        the result is compared, and the work begun anew.
        """
        rng = random.Random(f"{SEED} {self.command} {how}")
        moments = [(number + rng.random()) / KILLS for number in range(KILLS)]
        rng.shuffle(moments)
        self.starts = self.finished = 0
        self.codes.clear()
        self.clear()
        for moment in moments:
            while not self.is_killed(how, moment):
                pass
        signals = (signal.SIGTERM, signal.SIGINT) if how == "time" else ()
        for number in signals:
            while not self.is_killed("time", rng.random(), number):
                pass
        self.start()
        self.compare(self.warm.end())
        shown = ", ".join(f"{moment:.2f}" for moment in moments)
        print(
            f"\n{self.command}, killed by {how}: KILLS_SEED={SEED}; unbroken {self.seconds:.1f} s, "
            f"{self.changes} changes; {KILLS} SIGKILL at {shown}, {len(signals)} other signals "
            f"{self.codes}; {self.starts} starts, {self.finished} ended whole and equal"
        )

    def is_killed(self, how: str, moment: float, number: int = signal.SIGKILL) -> bool:
        began = time.monotonic()
        alone = how == "time" and number == signal.SIGKILL and self.killed % 2 == 1  # as for memory
        if how == "time":
            self.start()
            end = self.warm.end(moment * self.seconds)
            end = self.warm.kill(number, alone) if end is None else end
        else:
            self.start(cut=1 + int(moment * self.changes))
            end = self.warm.end()
        killed = end.code != self.code
        if number != signal.SIGKILL:
            self.codes.append(end.code)
        elif killed:
            assert end.code == -signal.SIGKILL, self.warm.log.read_text()[-5000:]
        if killed:
            log = self.warm.log.read_text() if self.warm.log.exists() else ""
            # A worker that is starting prints that there is nobody to tell it what to do.
            assert alone or "Traceback" not in log, log[-5000:]
            self.warm.log.unlink(missing_ok=True)
            self.killed += 1
            self.on_disk |= lines(self.out)
        else:
            self.compare(end)
            if not self.killed:  # the machine has less to do, or more, than it had
                self.seconds, self.changes = time.monotonic() - began, end.changes
            self.clear()
        return killed

    def compare(self, end: End) -> None:
        log = self.warm.log.read_text()
        assert end.code == self.code, log[-5000:]
        assert "Traceback" not in log, log[-5000:]
        here = content(self.out)
        assert here == self.whole, differences(self.whole, here)
        assert self.on_disk <= lines(self.out)  # what was done is not done again
        self.check(self.killed)
        self.finished += 1

    def start(self, cut: int = 0) -> None:
        self.starts += 1
        self.warm.start(self.argv, cut)

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.warm.log.unlink(missing_ok=True)
        self.on_disk.clear()
        self.killed = 0
        if self.inputs:
            shutil.copytree(self.inputs, self.out, symlinks=True)
        self.cleared()


def lines(out: Path) -> set[str]:
    """The whole lines of files of answers and verdicts."""
    paths = [path for path in out.rglob("*.jsonl") if path.name != "metrics.jsonl"]
    found = [line for path in paths for line in path.read_text().splitlines(keepends=True)]
    return {line for line in found if line.endswith("\n") and '"error"' not in line}


def content(out: Path) -> dict[str, object]:
    """What the files below a folder mean, by their path; a checkpoint is one thing."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        within = {str(parent.relative_to(out)) for parent in path.parents if out in parent.parents}
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif within & found.keys():
            continue
        elif path.is_dir():
            if (path / "_CHECKPOINT_METADATA").is_file() and path.name.isdigit():
                found[name] = checkpoint(path)
        elif path.name.startswith("events.out.tfevents."):
            found[str(path.parent.relative_to(out))] = events(path)
        elif path.suffix == ".json":
            found[name] = lasting(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            records = [lasting(json.loads(line)) for line in path.read_text().splitlines()]
            found[name] = sorted(json.dumps(record, sort_keys=True) for record in records)
        elif path.name == "accuracy.md":
            found[name] = [x for x in path.read_text().splitlines() if "Seconds of" not in x]
        elif path.name != "curves.png":
            found[name] = path.read_bytes()
    return {name: value for name, value in found.items() if not is_older(out / name)}


def is_older(path: Path) -> bool:
    """Whether it is a checkpoint before the newest: SIGTERM saves at steps of its own."""
    saved = path.parent.name == "checkpoints" and path.name.isdigit()
    return saved and int(path.name) < max(int(n) for n in os.listdir(path.parent) if n.isdigit())


def lasting(value: object) -> object:
    if isinstance(value, dict):
        return {k: lasting(inner) for k, inner in value.items() if k not in OF_THE_MOMENT}
    return [lasting(inner) for inner in value] if isinstance(value, list) else value


def checkpoint(path: Path) -> dict[str, object]:
    """Arrays by name, as bytes, and what is noted of them."""
    arrays = ocp.PyTreeCheckpointer().restore(path / "arrays")
    meta = path / "meta" / "metadata"
    noted = {"meta": lasting(json.loads(meta.read_text()))} if meta.is_file() else {}
    return noted | {name: (x.shape, np.asarray(x).tobytes()) for name, x in arrays.items()}


def events(path: Path) -> list[tuple]:
    """(step, tag, value) of a TensorBoard file, sorted."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 12 + size + 4
    return sorted(found)


def differences(whole: dict, here: dict) -> str:
    """In words, cut short."""
    told = [f"{name}: not there" for name in sorted(whole.keys() - here.keys())]
    told += [f"{name}: left over" for name in sorted(here.keys() - whole.keys())]
    for name in sorted(whole.keys() & here.keys()):
        if whole[name] != here[name]:
            told.append(f"{name}: {str(whole[name])[:700]}\n  in place of {str(here[name])[:700]}")
    return "\n".join(told)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, str]:
    """The environment by which programs are compiled once."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture
def killed(tmp_path, compiled, capsys):
    """killed(command, argv, *modules) -> Killed, whose argv names its folder {out}."""
    with contextlib.ExitStack() as ends:

        def killed(command: str, argv: list[str], *modules: str, **how) -> Killed:
            out = tmp_path / "out"
            warm = Warm(command, out, tmp_path / "log.txt", compiled, *modules)
            ends.callback(warm.close)
            return Killed(command, [text.format(out=out) for text in argv], out, warm, **how)

        yield killed
