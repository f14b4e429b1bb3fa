"""Starts one command again and again, each in a fork of a process that has imported what it needs.

    python warm.py COMMAND FOLDER [MODULE ...]

A line of stdin, {"argv": [...], "log": PATH, "cut": N}, is a start. Answered are a line with the
process's id, which leads a group of its own, and one with how it ended: its exit code (negative: a
signal) and how many changes it has made to the files below FOLDER. Before change number `cut`
(from 1; 0: none) it kills itself and its group.
"""

import ast
import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"}
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def import_what_it_imports(command: str) -> None:
    # Not the command: it defines its flags once, as it does when it is started.
    source = importlib.util.find_spec(f"rvllm_jax.{command}").origin
    for node in ast.parse(Path(source).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            importlib.import_module(node.module)


def count_changes(folder: str, cut: int, counted: int) -> None:
    """From now on, in this process; counted: a file descriptor that gets a byte a change."""
    made = 0

    def below(path: object, *descriptors: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        path = os.fsdecode(path)
        inside = any(isinstance(number, int) and number >= 0 for number in descriptors)
        return path.startswith(folder) or (inside and not path.startswith("/"))

    def hook(event: str, given: tuple) -> None:
        nonlocal made
        if event == "open":
            changes = bool(given[2] & WRITES) and below(given[0])
        else:
            changes = event in CHANGES and below(given[0], *given[1:])
        if changes:
            made += 1
            if made == cut:
                os.killpg(0, signal.SIGKILL)
            os.write(counted, b".")

    sys.addaudithook(hook)


def become(folder: str, argv: list[str], log: str, cut: int, counted: int) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the tests may be stopped
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, (path, how) in enumerate([
        (os.devnull, os.O_RDONLY), *[(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)] * 2
    ]):  # fmt: skip
        os.dup2(os.open(path, how, 0o666), number)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    count_changes(folder, cut, counted)
    sys.argv[1:] = argv


def serve(command: str, folder: str) -> bool:
    """Serves starts; returns in the process of each, and at the end."""
    for line in sys.stdin:
        start = json.loads(line)
        reads, counted = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reads)
            become(folder, start["argv"], start["log"], start["cut"], counted)
            return True
        os.close(counted)
        print(pid, flush=True)
        changes = 0
        while piece := os.read(reads, 4096):
            changes += len(piece)
        os.close(reads)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(code, changes, flush=True)
    return False


if __name__ == "__main__":
    command, folder, *modules = sys.argv[1:]
    import_what_it_imports(command)
    for module in modules:
        importlib.import_module(module)
    print("ready", flush=True)
    if serve(command, folder):
        runpy.run_module(f"rvllm_jax.{command}", run_name="__main__", alter_sys=True)
