"""How commands end, each start in a fork of a process that has imported what the command needs.

    python ended.py COMMAND

A line of stdin, {"argv": [...], "file_size": N or null, "home": PATH}, is a start; a line of JSON
answers: [exit code, output, seconds]. In the output is a line for what JAX has compiled.
"""

import ast
import importlib
import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path

import jax


def _import_what_it_imports(command: str) -> None:
    # Not the command: it defines its flags once, as it does when it is started.
    source = importlib.util.find_spec(f"rvllm_jax.{command}").origin
    for node in ast.parse(Path(source).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            importlib.import_module(node.module)
    if command == "build":
        importlib.import_module("tensorflow_datasets.scripts.cli.build")


def _print_compiled(event: str, duration: float, **of: object) -> None:
    # Past the commands' logging, whose verbosity hides what JAX logs.
    if event.endswith("backend_compile_duration"):
        os.write(2, b"Compiled by JAX\n")


def _become(start: dict, output: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    if start["home"]:
        os.environ["HOME"] = start["home"]
    if start["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (start["file_size"],) * 2)
    jax.monitoring.register_event_duration_secs_listener(_print_compiled)
    resource.setrlimit(resource.RLIMIT_CPU, (start["limit"],) * 2)
    sys.argv[1:] = start["argv"]


def _serve() -> bool:
    """Serves starts; returns True in the process of each, and False at the end."""
    for line in sys.stdin:
        start, began = json.loads(line), time.monotonic()
        reads, output = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reads)
            _become(start, output)
            return True
        os.close(output)
        with open(reads, "rb") as file:
            text = file.read().decode(errors="backslashreplace")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([code, text, time.monotonic() - began]), flush=True)
    return False


if __name__ == "__main__":
    _import_what_it_imports(command := sys.argv[1])
    if _serve():
        runpy.run_module(f"rvllm_jax.{command}", run_name="__main__", alter_sys=True)
