"""Runs, exports and prepared folders of older layouts than test_earlier.py's: opened and continued.

Each archive was made by the commit in its name (`older.py`; see there), at the end of a day's work:

    a1233fe  2026-11-23  before clips had policies and a checkpoint said what data it was made of,
                         and before the visual tokens had an embedding of their place
    402146a  2026-11-25  the last before policies of clips, budgets of damaged rows, 25 test clips
    587906d  2026-11-25  the last before frozen/; with an exported model and a prepared folder

3585ad9, the first commit, trains no second stage with today's Optax; its configurations differ from
a1233fe's in one key, which tests/config/test_migrate.py has. From 57086a3 of 2026-11-27 on a run is
of the layout that test_earlier.py continues (0951cbe of 2026-11-28).
"""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

OLDER = ("a1233fe", "402146a", "587906d")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_losses(place) -> None:
    """The run's records are those that its own version made to the end."""
    ours, theirs = (read_lines(place / f"{at}/metrics.jsonl") for at in ("run", "expected"))
    assert len(ours) == len(theirs)
    for new, old in zip(ours, theirs, strict=True):
        assert (new["step"], new["stage"], new["kind"]) == (old["step"], old["stage"], old["kind"])
        assert math.isclose(new["loss"], old["loss"], rel_tol=1e-5)


def command(place) -> list[str]:
    return json.loads((place / "command.json").read_text())


@pytest.mark.parametrize(
    ("commit", "restored"), [("402146a", ["--config.data.short=pad"]), ("587906d", [])]
)
def test_a_run_goes_on_to_the_same_end(opened, commit, restored):
    """What today's recipe has otherwise (data.short) is named, and restored on the command line."""
    place = opened(commit)
    if restored:
        _, refused = place.run(command(place), code=1)
        assert '\n  data.short: "pad" there, "stretch" now\n' in refused + "\n"
        assert refused.count(" there, ") == 1
    before = (place / "run/metrics.jsonl").read_text()
    shutil.copytree(place / "run", place / "stopped")
    place.run([*command(place), *restored])
    assert (place / "run/metrics.jsonl").read_text().startswith(before)
    assert_same_losses(place)
    stored = json.loads((place / "run/config.json").read_text())
    assert stored["layout_number"] == 2 and (place / "run/frozen/1").is_dir()
    shutil.rmtree(place / "run/report")
    if not restored:  # killed when a part of what stands apart was written
        shutil.rmtree(place / "run/frozen/1")
        for name in ("checkpoints", "best"):
            shutil.rmtree(place / "run" / name)
            shutil.copytree(place / "stopped" / name, place / "run" / name)
    place.run([*command(place), *restored])  # else from the last checkpoint beside frozen/
    assert (place / "run/report/results.json").is_file()
    assert_same_losses(place)


@pytest.mark.parametrize("commit", OLDER)
def test_a_run_answers_as_it_did(opened, commit):
    place = opened(commit)
    wanted = json.loads((place / "expected/answers.json").read_text())
    asked = [{key: line[key] for key in ("video", "question")} for line in wanted]
    (place / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    chat = ["chat", "--model=@FOLDER@/run", "--questions=@FOLDER@/asked.jsonl", "--max_new=6"]
    place.run([*chat, "--out=@FOLDER@/answered.jsonl", "--videos=@FOLDER@/videos"])
    assert read_lines(place / "answered.jsonl") == wanted


def test_a_run_from_before_a_parameter_is_opened_and_continued_by_its_own_version_alone(opened):
    place = opened("a1233fe")
    restored = ["--config.data.short=pad", "--config.stages.joint.optimizers.visual.lr=0.008"]
    before = place.state("run/checkpoints")
    _, refused = place.run([*command(place), *restored], code=1)
    assert "projector/places/embedding came with b05f7d2 of 2026-11-25" in refused
    assert place.state("run/checkpoints") == before
    place.run(["convert", "--source=@FOLDER@/run", "--out=@FOLDER@/ours"])
    arrays = load_file(place / "ours/model.safetensors")
    assert not arrays["projector/places/embedding"].any()


def test_an_exported_model_and_a_prepared_folder_are_evaluated(opened):
    place = opened("587906d")
    place.run(["convert", "--source=@FOLDER@/run", "--out=@FOLDER@/again"])
    ours, theirs = (load_file(place / f"{at}/model.safetensors") for at in ("again", "ours"))
    assert ours.keys() == theirs.keys() and theirs
    assert all((ours[name] == array).all() for name, array in theirs.items())
    frames = place.state("prepared")
    shutil.rmtree(place / "videos")
    place.run(
        ["evaluate", "--benchmarks=own", "--data=@FOLDER@/prepared", "--model=@FOLDER@/ours"]
        + ["--out=@FOLDER@/results", "--controls=0", "--videos=1", "--max_new=6"]
    )
    assert len(read_lines(place / "results/own/answers.jsonl")) == 4
    assert place.state("prepared") == frames
