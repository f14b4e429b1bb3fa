"""launch/colab.ipynb runs from top to bottom, and is stored as it should be."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `test` holds it")
nbclient = pytest.importorskip("nbclient", reason="the extra `test` holds it")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
SHORT = {
    **{f"stages.{stage}.steps": 2 for stage in ("language", "visual", "joint")},
    **{f"stages.{stage}.warmup": 1 for stage in ("language", "visual", "joint")},
    **{f"stages.{stage}.batch": 2 for stage in ("language", "visual", "joint")},
    **{"evaluation.clips": 2, "evaluation.probe_videos": 1, "evaluation.max_new": 2},
}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters(notebook):
    """The one cell that a reader sets."""
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1
    return tagged[0]


def execute(notebook, monkeypatch) -> dict[str, list]:
    """Runs every cell in a fresh kernel, and returns what each printed or showed, by its source."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}  # where a reader's kernel starts
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def pictures(outputs: dict[str, list]) -> int:
    return sum("image/png" in o.get("data", {}) for own in outputs.values() for o in own)


def said(outputs: dict[str, list], start: str) -> str:
    """What the cells that hold `start` printed."""
    own = [o for source, own in outputs.items() if start in source for o in own]
    return "".join(o["text"] for o in own if o.output_type == "stream" and o.name == "stdout")


def check(outputs):
    assert pictures(outputs) == 5
    assert "joint: language" in said(outputs, "trained_parts(recipe")
    assert said(outputs, "session.ask").count("->") == 2
    swapped = said(outputs, "trained_parts(swapped")
    assert "visual tokens a clip: 24 -> 6" in swapped and "visual: frozen" in swapped


@pytest.mark.slow
def test_it_runs_with_short_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    notebook = read()
    cell = parameters(notebook)
    values = {
        target.id: node.value for node in ast.parse(cell.source).body for target in node.targets
    }
    swapped = ast.literal_eval(values["SWAPPED"]) | {"stages.visual.steps": 2}
    cell.source = (
        f"WORKDIR = {str(tmp_path)!r}\nCLIPS = dict(train=4, validation=2, test=2)\n"
        f"OVERRIDES = {SHORT!r}\nSWAPPED = {swapped!r}"
    )
    check(execute(notebook, monkeypatch))


@pytest.mark.slow
def test_it_runs_as_it_is(tmp_path, monkeypatch):
    notebook = read()
    cell = parameters(notebook)
    cell.source += f"\nWORKDIR = {str(tmp_path)!r}"
    check(execute(notebook, monkeypatch))


def test_its_cells_are_short_explained_and_stored_without_outputs():
    cells = read().cells
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source
            assert len(cell.source.splitlines()) <= 20, cell.source
            assert cell.outputs == [] and cell.execution_count is None
    assert NOTEBOOK.stat().st_size < 20_000


def test_it_sets_only_keys_of_the_recipe(joint):
    values = {}
    exec(parameters(read()).source, values)
    config = joint()
    config.update_from_flattened_dict(values["OVERRIDES"] | values["SWAPPED"])  # refuses others
    assert config.model.tokens == "global"
