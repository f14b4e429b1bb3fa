"""The rules of the house: who may import whom, how large things are, and what stands in one place.

They are read out of the files. README.md shows the tree that they keep.
"""

import ast
import collections
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rvllm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# A folder imports those above it. The top level (commands and the front door) imports all of them.
ORDER = [
    "types",
    "system",
    "hosts",
    "sharding",
    *("data.video", "data.store", "data.annotations", "data.text", "data.shapes", "data.tfds"),
    *("data.prepare", "data.batches"),
    "models",
    "costs",
    "weights",
    "config",
    "generation",
    "training",
    *("evaluation.answers", "evaluation.judge", "evaluation.score", "evaluation"),
    "planning",
    *("experiments.saved", "experiments.report", "experiments.studies", "experiments"),
    "serving",
    "speed",
]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    """data/video/decode.py -> "data.video.decode"; a folder's __init__.py -> the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def folder_of(module: str) -> str:
    """The folder of a module as ORDER has it; "" for the top level."""
    is_folder = MODULES[module].name == "__init__.py"
    return "types" if module == "types" else module if is_folder else module.rpartition(".")[0]


def imports(tree: ast.AST) -> set[str]:
    """The modules that a file imports, wherever in it, with every name taken from them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_of(path: Path) -> set[str]:
    """The modules of the package that a file imports; not the folders on the way to them."""
    names = {n.removeprefix("rvllm_jax.") for n in imports(TREES[path])} & MODULES.keys()
    deeper = {name.rpartition(".")[0] for name in names}
    return {n for n in names if n not in deeper or MODULES[n].name != "__init__.py"} - {""}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_file_imports_only_folders_above_its_own(path):
    module = name_of(path)
    folder = folder_of(module)
    if folder == "":
        return
    assert folder in ORDER or folder == "data", f"{folder} has no place in ORDER"
    own = ORDER.index(folder) if folder in ORDER else len(ORDER)
    seen = {m: folder_of(m) for m in modules_of(path)}
    assert not {m for m, f in seen.items() if f == ""}, "a command is imported by nobody"
    assert not {m for m, f in seen.items() if f in ORDER and ORDER.index(f) > own}


def test_no_files_import_each_other_in_a_circle():
    graph = {module: modules_of(path) - {module} for module, path in MODULES.items()}
    while leaves := {m for m, needed in graph.items() if not needed & graph.keys()}:
        graph = {m: needed for m, needed in graph.items() if m not in leaves}
    assert not graph, f"in circles: {sorted(graph)}"


def test_configs_import_no_command():
    for path in ROOT.glob("configs/*.py"):
        names = {n.removeprefix("rvllm_jax.") for n in imports(ast.parse(path.read_text()))}
        assert not {m for m in names & MODULES.keys() if folder_of(m) == ""}


@pytest.mark.parametrize(
    "path",
    [*FILES, *sorted(ROOT.glob("tests/**/*.py")), *sorted(ROOT.glob("configs/*.py"))],
    ids=label,
)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    if path.parent.name == "configs":
        return  # a recipe is one table of values, to be read from top to bottom
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert not {name: lines for name, lines in long.items() if lines > 60}


def test_folders_are_read_at_a_glance():
    counts = collections.Counter(p.parent for p in FILES if p.name != "__init__.py")
    del counts[PACKAGE]
    assert not {label(folder): n for folder, n in counts.items() if n > 14}
    assert not [label(p) for p in FILES if len(p.relative_to(PACKAGE).parts) > 3]


def test_names_of_classes_are_unique():
    names = collections.defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names[node.name].append(label(path))
    assert not {name: files for name, files in names.items() if len(files) > 1}


def test_names_of_modules_are_unique_within_a_top_folder():
    names = collections.defaultdict(list)
    for module in MODULES:
        top, _, rest = module.partition(".")
        if rest and MODULES[module].name != "__init__.py":
            names[top, rest.rpartition(".")[2]].append(module)
    assert not {name: modules for name, modules in names.items() if len(modules) > 1}


def test_no_junk_drawer():
    stems = {path.stem for path in FILES}
    assert not stems & {"utils", "util", "helpers", "common", "misc", "base", "core"}


DIALECT = """Said Asked Asker Held Holding Told Seen Beside Looks Where How Done Together Machine
Described Opened Waiting""".split()


@pytest.mark.parametrize("path", FILES, ids=label)
def test_classes_and_variables_have_the_fields_words(path):
    nodes = list(ast.walk(TREES[path]))
    classes = {n.name for n in nodes if isinstance(n, ast.ClassDef)}
    assert not classes & set(DIALECT)
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    names |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    names |= {n.name for n in nodes if isinstance(n, FUNCTIONS)}
    assert not names & {"own", "found", "told", "said", "beside", "held"}


def users_of(pattern: str) -> set[str]:
    return {name_of(p) for p in FILES if re.search(pattern, p.read_text())}


def test_files_are_replaced_in_one_room():
    assert {
        m.partition(".")[0] for m in users_of(r"os\.(replace|fsync|rename)\(|\.replace_file\(")
    } <= {"system"}


def test_json_is_written_in_one_room():
    writers = users_of(r"write_text\(json\.dumps|json\.dump\(")
    assert {m.partition(".")[0] for m in writers} <= {"system"}


def test_jax_internals_are_used_by_hosts_join_alone():
    assert users_of(r"jax\._src") <= {"hosts.join"}


def test_what_is_installed_is_imported():
    setup = (ROOT / "setup.py").read_text()
    listed = re.search(r"install_requires=\[(.*?)\]", setup, re.S)[1]
    names = {n.lower().replace("-", "_") for n in re.findall(r'"([\w-]+)>=', listed)}
    modules = {"orbax_checkpoint": "orbax", "absl_py": "absl"}
    used = {name.split(".")[0].lower() for tree in TREES.values() for name in imports(tree)}
    assert {"jax", "flax"} <= names
    assert not {name for name in names if modules.get(name, name) not in used}


def test_tensorflow_and_torch_are_named_nowhere_in_the_package():
    for path, tree in TREES.items():
        roots = {module.split(".")[0] for module in imports(tree)}
        assert not roots & {"tensorflow", "torch"}, path


def test_configdict_stops_at_the_commands_and_the_config():
    users = {
        name_of(p)
        for p in FILES
        if "ml_collections" in {n.split(".")[0] for n in imports(TREES[p])}
    }
    assert {m.split(".")[0] for m in users if "." in m} <= {"config"}
    assert "config.check" in users


def errors() -> dict[str, tuple[str, list[str]]]:
    """Every public class XError of the package -> its module, and the names it derives from."""
    classes = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                names = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                classes[node.name] = (name_of(path), names)
    return {name: place for name, place in classes.items() if name.endswith("Error")}


def test_every_refusal_has_one_base():
    known = errors()
    assert "RvllmError" in known

    def derives(name: str) -> bool:
        return name == "RvllmError" or any(derives(b) for b in known.get(name, ("", []))[1])

    assert not {name: place for name, (place, _) in known.items() if not derives(name)}


ARRAY = re.compile(r"^(jax\.Array|np\.ndarray)\b")


def says_no_shape(function: ast.FunctionDef) -> bool:
    """Whether it takes arrays whose shapes neither their names nor its docstring state."""
    arguments = [a for a in [*function.args.args, *function.args.kwonlyargs] if a.annotation]
    arrays = {a.arg for a in arguments if ARRAY.search(ast.unparse(a.annotation))} - {"key"}
    unnamed = {name for name in arrays if not re.search(r"_[A-Z]\w*$", name)}
    text = ast.get_docstring(function) or ""
    return bool(unnamed) and "[" not in text and "shape" not in text


@pytest.mark.parametrize("folder", ["models", "training", "generation"])
def test_array_functions_state_their_shapes(folder):
    trees = [TREES[path] for path in FILES if path.parent == PACKAGE / folder]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node for part in [*trees, *classes] for node in part.body]
    functions = [f for f in functions if isinstance(f, FUNCTIONS) and f.name[0] != "_"]
    assert len(functions) > 20
    assert not [function.name for function in functions if says_no_shape(function)]


def run(program: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("worker", ["data.store.shard_writer", "data.prepare.survey"])
def test_a_decode_worker_imports_little(worker):
    """Each worker of a preparation imports it anew: JAX and TFDS would take seconds of it."""
    program = f"import sys, rvllm_jax.{worker}; print(*sorted(sys.modules), sep='\\n')"
    roots = {name.split(".")[0] for name in run(program)}
    assert "av" in roots
    assert not roots & {"jax", "flax", "tensorflow_datasets", "transformers", "matplotlib", "grain"}


def test_main_starts_without_tensorflow_torch_transformers_and_matplotlib(tmp_path):
    """They are made impossible to import. Importing the command asks for none: torch takes
    seconds, in every data worker too, and matplotlib is for the end. tensorboardX asks where
    records are written; it goes on."""
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch", "matplotlib", "transformers"):
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
    first, *asked = run(program, str(tmp_path))
    assert first == "imported"
    assert {line.split(" <- ")[1].split(".")[0] for line in asked} <= {"tensorboardX"}
    assert list((tmp_path / "tensorboard").iterdir())
