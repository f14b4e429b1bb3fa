"""Stands in for gcloud: notes every call, and keeps a slice of two workers as two folders.

CLOUD names the folder with all of it: calls.jsonl, state.json and worker0/, worker1/, the home
folders in which what is sent by ssh is run by bash. `plan.json` holds what happens: "preempt_at":
the number of the question for exit codes at which the slice is lost, once; "codes": exit codes of
the program by start and worker; "fails": "scp", "pip" or "describe", which then always does;
"states": what is answered first of the queued resource; "deleted_at": like preempt_at, but all is
deleted by somebody else.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
# The environment is there already: what is under test is the way to it.
PYTHON = """#!/usr/bin/env bash
[ "$2 $3" = "pip install" ] && exit {pip}
[ "$2" = pip ] && exit 0
printf '%s\\0' "$@" > ~/arguments
echo "start on $(basename ~)"
exec "{python}" "{program}" ~
"""


def plan():
    return json.loads((CLOUD / "plan.json").read_text())


def main(arguments):
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments[1:]) + "\n")
    group, verb, name = arguments[3:6]
    state = json.loads((CLOUD / "state.json").read_text())
    code = globals()[f"{group}_{verb}".replace("-", "_")](state, name, arguments[6:])
    (CLOUD / "state.json").write_text(json.dumps(state))
    return code


def described(found):
    if plan().get("fails") == "describe":
        print("ERROR: (gcloud) There was a problem refreshing your tokens", file=sys.stderr)
        return 1
    print(found) if found else print("ERROR: (gcloud) NOT_FOUND: Resource", file=sys.stderr)
    return 0 if found else 1


def queued_resources_describe(state, name, options):
    number = state["looked"] = state.get("looked", 0) + 1
    return described(dict(enumerate(plan().get("states", []), 1)).get(number, state["queued"]))


def queued_resources_create(state, name, options):
    state |= {"queued": "ACTIVE", "slice": "READY"}
    for worker in (0, 1):
        folder = CLOUD / f"worker{worker}" / "rvllm_jax" / ".venv" / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        program = Path(__file__).with_name("program_stand_in.py")
        pip = int(plan().get("fails") == "pip")
        text = PYTHON.format(python=sys.executable, program=program, pip=pip)
        (folder / "python").write_text(text)
        (folder / "python").chmod(0o755)
    return 0


def queued_resources_delete(state, name, options):
    if state["queued"]:
        for worker in ("worker0", "worker1"):
            # Moved first: what was killed there may still be writing its exit code.
            gone = (CLOUD / worker).rename(CLOUD / f"{worker}.gone{state['asked']}")
            shutil.rmtree(gone, ignore_errors=True)
    state |= {"queued": "", "slice": ""}
    return 0


def tpu_vm_describe(state, name, options):
    return described(state["slice"])


def tpu_vm_scp(state, name, options):
    if plan().get("fails") == "scp":
        return 1
    for worker in (0, 1):
        shutil.copy(name, CLOUD / f"worker{worker}" / options[0].partition(":")[2])
    return 0


def tpu_vm_ssh(state, name, options):
    values = dict(option.lstrip("-").split("=", 1) for option in options)
    command = values["command"]
    if "kill -0" in command:
        state["asked"] += 1
        if state["asked"] == plan().get("preempt_at"):
            state["slice"] = "PREEMPTED"
            subprocess.run(["pkill", "-KILL", "-f", f"program_stand_in.py {CLOUD}"], check=False)
        if state["asked"] == plan().get("deleted_at"):
            queued_resources_delete(state, name, options)
    if state["slice"] != "READY":
        print("the worker does not answer", file=sys.stderr)
        return 255
    codes = []
    for worker in (0, 1) if values["worker"] == "all" else (int(values["worker"]),):
        home = CLOUD / f"worker{worker}"
        environment = os.environ | {"HOME": str(home)}
        done = subprocess.run(["bash", "-c", command], cwd=home, env=environment, check=False)
        codes.append(done.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
