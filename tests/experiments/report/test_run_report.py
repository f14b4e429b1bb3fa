import json
import math

import numpy as np
import pytest
from matplotlib.image import imread

from rvllm_jax.experiments.report.run_report import clear, format_table, write
from rvllm_jax.experiments.report.samples import Sample
from rvllm_jax.system.atomic import WriteError
from rvllm_jax.training.metrics import Metrics

RESULTS = {
    "accuracy": {"train": {"all": 0.5, "colour": 1.0}, "test": {"all": 0.25, "form": 0.125}},
    "controls": {"blind": {"all": 0.1, "form": math.nan}},
    "counts": {"train": {"all": 4, "colour": 2}, "test": {"all": 1200, "form": np.int64(8)}},
    "seconds": {"sgd": 28.4, "adamw": 244.9},
    "control_split": "test",
    "steps": 40,
}
SAMPLE = Sample(np.full((3, 16, 16, 3), 128, np.uint8), "What colour?", "red", "red", "test")


def test_writes_everything_that_the_report_is(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.log(1, "sgd", {"loss": 2.0})
    metrics.close()
    folder = write(tmp_path, RESULTS, [SAMPLE])
    assert folder == tmp_path / "report"
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["accuracy.md", "curves.png", "results.json", "samples.png"]
    results = json.loads((folder / "results.json").read_text())
    assert results["accuracy"] == RESULTS["accuracy"]
    assert results["counts"] == {"train": {"all": 4, "colour": 2}, "test": {"all": 1200, "form": 8}}
    assert results["seconds"] == RESULTS["seconds"]
    assert results["controls"] == {"blind": {"all": 0.1, "form": None}}  # JSON knows no NaN
    assert results["steps"] == 40
    assert format_table(RESULTS) in (folder / "accuracy.md").read_text()
    for name in ("curves.png", "samples.png"):
        assert imread(folder / name).std() > 0.01


def test_without_samples_there_is_no_sheet_of_an_earlier_run(tmp_path):
    write(tmp_path, RESULTS, [SAMPLE])
    folder = write(tmp_path, RESULTS, [])
    assert not (folder / "samples.png").exists()


def test_results_come_last_so_that_they_stand_for_a_complete_report(tmp_path):
    (tmp_path / "report" / "accuracy.md").mkdir(parents=True)  # cannot be replaced by a file
    with pytest.raises(WriteError, match="accuracy.md: cannot be written"):
        write(tmp_path, RESULTS, [SAMPLE])
    assert not (tmp_path / "report" / "results.json").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seconds": None}, "results lack 'seconds'"),
        ({"accuracy": {"test": {"form": 1.0}}}, r"results\['accuracy'\]\['test'\] lacks 'all'"),
        ({"controls": {"blind": {}}}, r"results\['controls'\]\['blind'\] lacks 'all'"),
    ],
)
def test_refuses_results_that_lack_a_part_before_writing(tmp_path, change, message):
    results = {k: v for k, v in {**RESULTS, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        write(tmp_path, results, [])
    assert list(tmp_path.iterdir()) == []


def test_the_table():
    lines = format_table(RESULTS).splitlines()
    assert lines[:5] == [
        "| question type | train |  test | blind |",
        "| ------------- | ----: | ----: | ----: |",
        "| all           | 0.500 | 0.250 | 0.100 |",
        "| colour        | 1.000 |     - |     - |",
        "| form          |     - | 0.125 |   nan |",
    ]
    assert "| all           |     4 | 1,200 |" in lines
    assert "Controls (blind) ask the questions of test." in lines
    assert lines[-1] == "Seconds of training: sgd 28, adamw 245; together 273."


def test_the_table_tells_how_the_loss_goes_on_at_a_boundary():
    loss = {"before": 0.73, "at": 250, "after": 0.51, "step": 450}
    text = format_table({**RESULTS, "boundaries": {"visual -> joint": loss}})
    assert text.splitlines()[-1] == (
        "Validation loss at visual -> joint (step 250): 0.730 before, 0.510 at step 450."
    )


def test_the_table_tells_of_questions_that_only_a_look_decides():
    recurring = {"count": 12, "plain": 1.0, "blind": 0.25}
    text = format_table({**RESULTS, "recurring": recurring})
    assert "recurs with different answers (12): right 1.000, blind 0.250." in text
    swapped = {"changed": 0.9, "follows": 0.75}
    text = format_table({**RESULTS, "recurring": recurring | {"swapped": swapped}})
    assert "0.250; with their videos swapped 0.900 of the answers change and 0.750 are" in text
    for none in ({"recurring": {"count": 0}}, {}):
        assert "recurs" not in format_table(RESULTS | none)


def test_the_parts_of_a_report_are_of_one_run(tmp_path):
    folder = write(tmp_path, RESULTS, [])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "accuracy.md.tmp").mkdir()  # as good as a disk that is full at the second file
    with pytest.raises(WriteError, match="Free some space, then start the same command"):
        write(tmp_path, RESULTS | {"steps": 41}, [])
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_clearing_takes_the_report_and_leaves_what_is_another_s(tmp_path):
    clear(tmp_path)
    folder = write(tmp_path, RESULTS, [SAMPLE])
    (folder / "notes.txt").write_text("mine")
    clear(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
