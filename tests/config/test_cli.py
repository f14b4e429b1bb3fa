"""What the commands share; that each ends as its docstring says is tested with the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_jax.config.cli import RENAMED, FlagError, refuse_renamed, with_recipe

ROOT = Path(__file__).parents[2]
# A command in a process of its own: flags are one table of a process.
COMMAND = """
import sys
from absl import flags
from rvllm_jax.config import cli
from rvllm_jax.system.errors import RvllmError

cli.RENAMED["old"] = "what"
WHAT = flags.DEFINE_enum("what", None, ["code", "error", "other", "fault", "interrupt"], "Ends so.")

def main(*arguments):
    print(*arguments)
    if WHAT.value == "code":
        return 3
    raise {
        "error": RvllmError("in words"), "other": OSError("no room"), "fault": ValueError("bug"),
        "interrupt": KeyboardInterrupt(),
    }[WHAT.value]

cli.run(main, OSError, required=["what"], positional=1)
"""


def ended(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, and the last line of the error output."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ("Traceback" in done.stderr) == ("--what=fault" in arguments)
    return done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1]


def test_a_command_ends_with_its_code_or_with_what_went_wrong():
    assert ended("--what=code", "video") == (3, "video\n", "")
    assert ended("--what=error") == (1, "\n", "refused: in words")
    assert ended("--what=other") == (1, "\n", "refused: no room")
    assert ended("--what=interrupt") == (130, "\n", "interrupted; start the same command again")
    assert ended("--what=fault")[0::2] == (1, "ValueError: bug")
    assert ended("--old=code") == (1, "", "FlagError: --old: is called --what now")
    assert ended("--what=code", "a", "b")[0] == 1 and ended()[0] == 1


def test_what_is_called_otherwise_now_is_refused_by_its_new_name():
    renamed = {"config.data.fps": "config.data.rate", "config.a": "config.b.a", "batch": "size"}
    for given, now in (
        ("--config.data.fps=4", "config.data.rate"),
        ("-noconfig.a.x", "config.b.a.x"),
        ("--batch", "size"),
    ):
        with pytest.raises(FlagError, match=rf"is called --{now} now$"):
            refuse_renamed(["main", "--config=x.py", given, "8"], renamed)
    refuse_renamed(["batch", "batch", "--batches=1", "--config.data.fps2=1", "-", "--"], renamed)


def test_a_key_below_a_section_of_any_name_and_one_that_is_gone_are_refused():
    renamed = {"config.stages.*.optimizers.*.rate": "config.stages.*.optimizers.*.lr"}
    removed = {"config.stages.*.gone": "set config.there"}
    given, now = (f"--config.stages.joint.optimizers.sgd.{name}" for name in ("rate", "lr"))
    with pytest.raises(FlagError, match=rf"^{given}: is called {now} now$"):
        refuse_renamed(["main", f"{given}=3"], renamed, removed)
    with pytest.raises(FlagError, match=r"^--config.stages.joint.gone: .*; set config.there$"):
        refuse_renamed(["main", "--config.stages.joint.gone", "3"], renamed, removed)
    refuse_renamed(["main", "--config.stages.joint.goner=3"], renamed, removed)


def test_a_recipe_that_is_not_there_is_refused_by_its_path():
    for given in (["--config=x.py:tiny"], ["-config", "x.py", "--config.seed=3"]):
        with pytest.raises(FlagError, match=rf"^--config=x.py: there is no such file in {ROOT}"):
            with_recipe(["main", *given])
    given = ["main", f"--config={ROOT}/configs/joint.py:paper", "--config.seed=3", "--workdir=x"]
    assert with_recipe(given) == given


def test_a_recipe_is_looked_up_from_this_folder_and_the_shipped_one_is_suggested(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlagError, match=f"did you mean --config={ROOT}/configs/joint.py"):
        with_recipe(["main", "--config=configs/joint.py"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("this is no Python", "SyntaxError"),
        ("x = 1", "no get_config"),
        ("1 / 0", "ZeroDivisionError"),
        ("def get_config(): raise ValueError('mine')", "mine"),
        ("def get_config(): return None", "NoneType"),
        ("def get_config(): return {}['mine']", "KeyError: 'mine'"),
        ("import sys\nsys.exit(0)", "SystemExit"),
    ],
)
def test_a_recipe_that_is_none_is_refused_by_its_path(text, reason, tmp_path, monkeypatch):
    (tmp_path / "r.py").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FlagError, match=f"^--config={tmp_path}/r.py: (?s:.*){reason}"):
        with_recipe(["main", "--config=~/r.py"])


def test_no_new_name_is_an_old_one():
    assert not set(RENAMED) & set(RENAMED.values())


@pytest.mark.parametrize(("typed", "words"), [
    ("prepare --videos=/a --annotations=/b.json --out=/c",
     "--split: is not given; give it a value, --split=...: train, validation or test"),
    ("report", "--results: is not given"),
    ("report --results=/a --failures=-5", "--failures=-5"),
    ("evaluate --benchmarks=own --model=/a --out=/b --controls=" + "9" * 20, "--controls=999"),
    ("chat ~nobody-here/v.mp4 --model=/a", "VIDEO=~nobody-here/v.mp4"),
    ("bench checkpoint --set model=3", "model"),
])  # fmt: skip
def test_what_is_missing_or_cannot_be_is_refused_as_it_was_typed(typed, words, tmp_path):
    command, *arguments = typed.split()
    done = subprocess.run(
        [sys.executable, "-m", f"rvllm_jax.{command}", *arguments], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert words in done.stderr and "no such file" not in done.stderr, done.stderr
