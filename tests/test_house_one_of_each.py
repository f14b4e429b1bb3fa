"""What the package has one of: writers, locks, pools, streams. An exception says here why."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rvllm_jax"
TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
}


def callers(*names: str) -> set[str]:
    """The modules that call a function or method of one of these names, as written or its end."""
    users = set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if any(called == name or called.endswith(f".{name}") for name in names):
                    users.add(module)
    return users


def openers_for_writing() -> set[str]:
    """The modules that open a file by a mode that changes it."""
    users = set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open"):
                values = [*node.args, *(word.value for word in node.keywords)]
                modes = [v.value for v in values if isinstance(v, ast.Constant)]
                if any(isinstance(m, str) and set(m) & set("wax+") and len(m) < 4 for m in modes):
                    users.add(module)
    return users


# Where a file is opened to be written, beside system: within `replacing`, part by part; of binary
# records that grow, not of lines; a video's container, by PyAV.
OPENED = {"weights.safetensors", "data.store.journal", "data.video.encode"}


def test_files_are_written_by_system():
    assert {m for m in openers_for_writing() if not m.startswith("system.")} == OPENED
    copied = callers("shutil.copy", "shutil.copyfile", "shutil.copy2", "shutil.move", "os.rename")
    assert not copied
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                by_path = node.func.attr in ("write_bytes", "write_text")
                owner = ast.unparse(node.func.value)
                # /proc is no file, and asks for no room.
                allowed = owner == "atomic" or "/proc/" in owner or module.startswith("system.")
                assert not by_path or allowed, f"{module}: {ast.unparse(node)}"


def test_json_is_streamed_by_nobody_and_read_from_files_by_system():
    assert not callers("json.dump", "json.load") - {"planning.compile"}  # a pipe, not a file
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.loads":
                read = "read_text" in ast.unparse(node) or "read_bytes" in ast.unparse(node)
                assert not read or module.startswith("system."), module


def test_one_lock_and_one_pool_of_watched_processes():
    assert callers("flock", "lockf") == {"system.lock"}
    # Rendering hangs and crashes nothing: shapes takes the standard pool, in order.
    assert callers("get_context") == {"system.pool", "data.shapes.build"}
    assert callers("ProcessPoolExecutor") == {"data.shapes.build"}


def test_what_is_drawn_has_a_stream_of_its_own_in_system():
    measured = {m for m in callers("default_rng", "RandomState") if m.startswith("speed.")}
    assert callers("default_rng", "RandomState") - measured == {"system.random"}
    keys = callers("jax.random.key", "jax.random.PRNGKey") - measured
    # Parameters, of the run's seed; their shapes; the token of a step: system/random.py lists them.
    assert keys <= {"training.loop", "training.state", "generation.sampling", "speed.step_parts"}


@pytest.mark.parametrize("module", sorted(TREES))
def test_attributes_and_keywords_have_the_fields_words(module):
    nodes = list(ast.walk(TREES[module]))
    names = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    names |= {n.arg for n in nodes if isinstance(n, ast.keyword)}
    # A key of info.json, which stays readable.
    allowed = {"told"} if module == "evaluation.leakage" else set()
    assert not (names & {"own", "found", "told", "said", "beside", "held"}) - allowed


def test_folders_are_made_by_name():
    """Else a path through a file ends in a traceback."""
    makers = {m for m in callers("mkdir", "makedirs") if not m.startswith(("system.", "speed."))}
    # In a folder that is there and taken; and one that says its option's name.
    assert makers == {"training.checkpoint_folder", "data.prepare.beam"}
