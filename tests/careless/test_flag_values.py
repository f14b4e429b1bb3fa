"""Values that no flag was made for: every flag of every command refuses them in words, or takes
them. No folder, model or video is there: what is taken ends at the first of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_jax.config.keys import walk
from rvllm_jax.config.schema import Recipe

ROOT = Path(__file__).parents[2]

VALUES = (
    "", "two", "-1", "0", "9" * 20, "-" + "9" * 20, "1e400", "nan", "-inf", "1.5",
    "\u00fc\U0001f600\u202e", "a/b", "x" * 5000, "{", "[", ",", "~nobody/x", "host:99999", "%s",
)  # fmt: skip
REQUIRED = {
    "main": ["--config=configs/joint.py", "--config.data.videos=/absent/v",
             "--config.data.conversations=/absent/c.json", "--workdir=/proc/absent/run"],
    "prepare": ["--videos=/absent/v", "--annotations=/absent/a.json", "--out=/proc/absent/o",
                "--split=test"],
    "convert": ["--source=/absent/s", "--out=/proc/absent/o"],
    "chat": ["--model=/absent/m", "--question=What?", "/absent/video.mp4"],
    "evaluate": ["--benchmarks=msvd_qa", "--model=/absent/m", "--out=/proc/absent/o"],
    "judge": ["--results=/absent/r"],
    "report": ["--results=/absent/r"],
    "plan": ["--config=configs/joint.py", "--topology=none:1"],
}  # fmt: skip
LISTED = """
import importlib, json, sys
from absl import flags
module = importlib.import_module("rvllm_jax." + sys.argv[1])
names = [f.name for f in flags.FLAGS.get_key_flags_for_module(module.__name__)]
print(json.dumps([n for n in names if "config" != n]))
"""


def flags_of(command: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LISTED, command], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def in_words(code: int, output: str) -> str:
    """What is wrong with how a command has ended; "" where nothing is."""
    if "Traceback" in output:
        return output[-1500:]
    if code not in (1, 2, 3, 4):
        return f"code {code}: {output[-500:]}"
    return "" if output.strip() else "it says nothing"


def flags_and_keys(command: str) -> list[str]:
    if command != "main":
        return flags_of(command)
    paths = [each.path.replace("STAGE", "joint").replace("NAME", "adamw") for each in walk(Recipe)]
    return flags_of(command) + [f"config.{path}" for path in paths]


QUICK = ("judge", "report")
NAMES = [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in REQUIRED]


@pytest.mark.parametrize("values", [2, pytest.param(len(VALUES), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_every_flag_refuses_what_it_cannot_take_in_words(name, values, command):
    """values: how many a flag is given; each flag begins at another one."""
    start, wrong = command(name), []
    for position, flag in enumerate(flags_and_keys(name)):
        for number in range(values):
            argument = f"--{flag}={VALUES[(position * values + number) % len(VALUES)]}"
            code, output, _ = start([*REQUIRED[name], argument])
            if fault := in_words(code, output):
                wrong.append(f"{argument[:100]}: {fault}")
    assert not wrong, f"{len(wrong)} cases\n" + "\n\n".join(wrong[:6])
