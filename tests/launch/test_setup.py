"""setup.py installs all of the package: every folder of modules, and what is read at run time."""

import ast
import fnmatch
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rvllm_jax"


def package_data() -> list[str]:
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "package_data":
            return ast.literal_eval(node.value)[""]
    return []


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent.relative_to(ROOT) for path in PACKAGE.rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders}
    assert names == set(find_packages(ROOT, include=["rvllm_jax", "rvllm_jax.*"]))


def test_templates_and_styles_are_installed():
    """Pages of documentation are not: nothing reads them at run time."""
    others = {p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    others = {path for path in others if path.suffix not in (".py", ".md")}
    assert PACKAGE / "system" / "templates" / "style.css" in others
    for path in others:
        folder = next(f for f in path.parents if (f / "__init__.py").is_file())
        name = str(path.relative_to(folder))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in package_data()), path
