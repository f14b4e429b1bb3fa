"""Every command that a README shows exists, and so do its flags and configuration keys."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rvllm_jax"
READMES = sorted([ROOT / "README.md", *PACKAGE.rglob("README.md"), *ROOT.glob("launch/*.md")])
EVERYWHERE = {"help", "helpfull"}
TFDS_FLAGS = {"data_dir", "manual_dir"}  # `build` passes them on to TFDS


def commands() -> dict[str, set[str]]:
    """Command lines `python -m rvllm_jax.NAME ...` -> the READMEs that show them."""
    lines = {}
    for path in READMES:
        text = re.sub(r" *\\\n *", " ", path.read_text())
        shown = re.findall(r"^ {4,}(?:\$ )?(python -m rvllm_jax\..*?)(?:  +#.*)?$", text, re.M)
        shown += re.findall(r"`(python -m rvllm_jax\.[^`]*)`", text.replace("\n", " "))
        for line in shown:
            lines.setdefault(line, set()).add(str(path.relative_to(ROOT)))
    return lines


def flags_of(command: str) -> set[str]:
    """Names in the files where a command's flags are defined."""
    files = [PACKAGE / f"{command.replace('.', '/')}.py", *PACKAGE.glob("hosts/*.py")]
    files += PACKAGE.glob("speed/*.py") if command == "bench" else []
    named = {
        node.value.lstrip("-")
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return named | TFDS_FLAGS if command == "build" else named


def test_the_readme_shows_commands():
    shown = {line.split()[2] for line in commands()}
    assert {f"rvllm_jax.{name}" for name in ("main", "prepare", "evaluate", "chat")} <= shown


@pytest.mark.parametrize("line", sorted(commands()))
def test_a_shown_command_exists_with_its_flags(line, joint):
    words = shlex.split(line.replace("...", "").replace("[", "").replace("]", ""))
    module = words[2].removeprefix("rvllm_jax.")
    assert (PACKAGE / f"{module.replace('.', '/')}.py").is_file(), line
    known = flags_of(module) | EVERYWHERE
    for word in words[3:]:
        if not word.startswith("--") or word == "--":
            continue
        name = word[2:].partition("=")[0]
        if name.startswith("config."):
            config = joint()
            for part in name.split(".")[1:]:
                part = "visual" if part == "*" else part
                assert part in config, f"{line}: config has no key {name}"
                config = config[part]
        else:
            assert name in known or name.removeprefix("no") in known, f"{line}: no flag --{name}"


def test_a_readme_is_short_and_every_folder_has_one():
    lengths = {path: len(path.read_text().splitlines()) for path in READMES}
    assert lengths.pop(ROOT / "README.md") <= 170
    assert not {str(path): n for path, n in lengths.items() if n > 80}
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE, PACKAGE / "data"}
    # Folders of a room are in its page.
    assert {f for f in folders if f.parent in (PACKAGE, PACKAGE / "data")} <= {
        path.parent for path in lengths
    }


def tree() -> set[Path]:
    """The files and folders that the README's tree names."""
    text = (ROOT / "README.md").read_text()
    lines = re.search(r"^ {4}configs/joint\.py.*?(?=\n\n)", text, re.M | re.S)[0].splitlines()
    paths, above = set(), [(0, ROOT)]
    for line in lines:
        depth, first = len(line) - len(line.lstrip()), line.split()[0]
        if depth < 20:  # else a line goes on
            above = [(inner, folder) for inner, folder in above if inner < depth]
        if first.endswith("/"):
            above.append((depth, above[-1][1] / first))
            paths.add(above[-1][1])
        paths |= {above[-1][1] / name for name in re.findall(r"[\w/]+\.(?:py|md)\b", line)}
    return paths


def test_the_tree_shows_every_folder_and_names_files_that_are_there():
    shown = tree()
    assert PACKAGE / "training" / "step.py" in shown
    assert not sorted(str(path) for path in shown if not path.exists())
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert folders - {PACKAGE / "data"} <= shown | {PACKAGE / "data"}
    commands = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert commands <= {path.name for path in shown if path.parent == PACKAGE}
