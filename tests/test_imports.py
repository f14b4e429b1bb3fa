"""The rooms of the package and which may see which, by the imports that stand in the files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rvllm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
NO_COMMANDS = ("__init__", "types", "config", "recipe", "command_line")  # of the top level
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {*NO_COMMANDS}

# What a room may see, beside itself: rooms, or single modules of them.
MAY_SEE = {
    "types": set(),
    "hosts": set(),
    "data": {"types"},
    "models": {"types"},
    "weights": set(),
    "generation": {"types", "models", "data.chat", "data.packing", "data.tokenizer", "data.clips"},
    "evaluation": {"types", "hosts", "models", "data", "generation"},
    "recipe": {"types", "models", "training.stages"},
    "command_line": {"config"},
    "config": {"types", "models", "data", "recipe", "training.stages"},
    "training": {"types", "hosts", "models", "data", "weights", "config", "evaluation"},
    "benchmarks": {
        *("types", "data", "models", "training", "generation", "evaluation", "weights"),
        *("recipe", "config", "planning", "experiments.run"),
    },
    "planning": {
        *("types", "recipe", "config", "models", "training", "experiments.run"),
    },
    "experiments": {
        *("types", "hosts", "models", "data", "weights", "config", "training", "generation"),
        "evaluation",
    },
}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, with every name taken from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def seen_by(path: Path) -> set[str]:
    """The modules of the package that a file imports: {"data.video", "types"}."""
    modules = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "rvllm_jax" and len(parts) > 1:
            place = PACKAGE.joinpath(*parts[1:])
            if place.with_suffix(".py").is_file() or place.is_dir():  # else a name in a module
                modules.add(".".join(parts[1:]))
    return modules


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def forbidden(path: Path) -> list[str]:
    room = room_of(path)
    if room in COMMANDS or room == "__init__":
        return sorted(m for m in seen_by(path) if m.split(".")[0] in COMMANDS and m != room)
    allowed = MAY_SEE[room] | {room}
    packages = {m for m in allowed if "." in m}
    return sorted(
        module
        for module in seen_by(path)
        if module.split(".")[0] not in allowed
        and module not in packages
        and not any(single.startswith(f"{module}.") for single in packages)
    )


def test_every_room_is_known():
    rooms = {room_of(path) for path in FILES} - COMMANDS - {"__init__"}
    assert rooms <= MAY_SEE.keys() and {"data", "models", "training"} <= rooms
    assert "main" in COMMANDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_sees_only_what_its_room_may_see(path):
    assert not forbidden(path)


def test_nobody_imports_a_command():
    importers = [p for p in [*FILES, *ROOT.glob("configs/*.py")] if room_of_any(p) not in COMMANDS]
    assert not [p for p in importers if {m.split(".")[0] for m in seen_by(p)} & COMMANDS]


def room_of_any(path: Path) -> str:
    return room_of(path) if path.is_relative_to(PACKAGE) else ""


def test_configdict_stops_at_the_commands_config_and_loop():
    may = {PACKAGE / f"{name}.py" for name in {*COMMANDS, "config"}}
    may |= {PACKAGE / "training" / "loop.py"}
    others = [p for p in FILES if any(m.split(".")[0] == "ml_collections" for m in imports(p))]
    assert PACKAGE / "config.py" in others  # the search finds what there is
    assert set(others) <= may


def test_no_junk_drawer():
    names = {path.stem for path in FILES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_tensorflow_and_torch_are_named_nowhere_in_the_package():
    for path in FILES:
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"tensorflow", "torch", "transformers"}, path


def test_main_starts_without_tensorflow_torch_and_matplotlib(tmp_path):
    """They are made impossible to import. Importing the command asks for none: torch takes
    seconds, in every data worker too, and matplotlib is for the end. tensorboardX asks where
    records are written; it goes on."""
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch", "matplotlib"):
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            print(name, "<-", frame.f_globals["__name__"])
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import rvllm_jax.main
print("imported")
from rvllm_jax.training.metrics import Metrics
metrics = Metrics(sys.argv[1], 0)
metrics.log(1, "joint", {"loss": 1.0})
metrics.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *asked = done.stdout.splitlines()
    assert first == "imported"
    assert {line.split(" <- ")[1].split(".")[0] for line in asked} <= {"tensorboardX"}
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted(ROOT.glob("tests/**/*.py")), *sorted(ROOT.glob("configs/*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300, "a file has at most 300 lines: split it by topic"
    if path.parent.name == "configs":
        return  # a recipe is one table of values, to be read from top to bottom
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert not {name: lines for name, lines in long.items() if lines >= 60}
