"""What cannot be used ends a run with the reason and what to do, where it can before it starts."""

import functools
import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import orbax.checkpoint as ocp
import pytest

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.batches.packing import PackingError
from rvllm_jax.data.batches.source import SourceError
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.train import run, train
from rvllm_jax.training import metrics
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.checkpoint_folder import CheckpointError
from rvllm_jax.training.diagnostics import TrainingError
from rvllm_jax.training.loop import Trainer
from rvllm_jax.training.state import Position
from rvllm_jax.training.validate import validation_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")
NEVER = 100  # updates between two validations: they would only take time


def test_updates_that_are_not_finite_end_the_run_with_step_and_clips(tmp_path, recipe):
    changes = {"optimizers.sgd.lr": 1e38, "warmup": 0}
    changes = {f"stages.visual.{key}": value for key, value in changes.items()}
    with pytest.raises(TrainingError) as error:
        run(recipe(**changes, max_skipped=3, evaluation__every=NEVER), tmp_path)
    *_, last = (r for r in metrics.read(tmp_path / "metrics.jsonl") if r["kind"] == "train")
    assert last["skipped"] == 3 and last["step"] < 6
    message = str(error.value)
    assert f"3 updates in a row were not finite, the last at step {last['step']} " in message
    assert "(stage visual, update" in message
    assert all(f"{number}.mp4" in message for number in range(6))
    assert "config.stages.visual.optimizers.*.lr and name a new --workdir" in message
    latest = Checkpoints(tmp_path).training.latest()
    assert f"checkpoint is that of step {latest}." in message
    saved = ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints" / str(latest) / "arrays")
    assert all(np.isfinite(x).all() for n, x in saved.items() if n.startswith("stats/"))


def test_more_bad_videos_than_allowed_end_the_run_before_it_starts(tmp_path, recipe):
    with pytest.raises(FrameStoreError, match="1 of 9 videos do not decode.*bad.mp4"):
        run(recipe(data__max_bad=0.1), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("split", ["conversations", "validation", "test"])
def test_annotations_that_cannot_be_used_end_the_run_before_it(tmp_path, recipe, record, split):
    def refusal(error, **changed) -> str:
        (tmp_path / "own.json").write_text(json.dumps([record(1) | {"id": "x"} | changed]))
        with pytest.raises(error) as caught:
            own = {f"data.{split}": str(tmp_path / "own.json")}
            run(recipe(**own, data__max_bad=0.5), tmp_path)
        assert not (tmp_path / "checkpoints").exists()
        return str(caught.value)

    question, answer, *_ = record(1)["conversations"]
    message = refusal(AnnotationError, video="lost.mp4")
    assert "'x' names 'lost.mp4'" in message and "Add the files" in message
    message = refusal(AnnotationError, conversations=[question, answer | {"value": " "}])
    assert all(word in message for word in ("own.json", "'x'", "answer", "fill it in or remove"))
    message = refusal(PackingError, conversations=[question | {"value": "Why? " * 100}, answer])
    assert "'x'" in message and "data.context = 96: raise it to" in message
    message = refusal(SourceError, video="bad.mp4")
    assert "own.json" in message and "bad.mp4" in message and "Replace" in message


def test_updates_that_are_not_finite_before_the_first_checkpoint_say_that_there_is_none():
    examples = [SimpleNamespace(video="panda.mp4")]
    trainer = SimpleNamespace(
        train_sets={"video": SimpleNamespace(examples=examples)},
        recipe=SimpleNamespace(max_skipped=3),
        checkpoints=SimpleNamespace(training=SimpleNamespace(latest=lambda: None)),
    )
    stage, rows = SimpleNamespace(name="visual", input="video"), np.array([0, -1])
    with pytest.raises(TrainingError, match="panda.mp4.*No checkpoint has been written") as error:
        Trainer._skipped(trainer, stage, Position(skipped=3), rows, 3, 3)
    assert "None" not in str(error.value)


@pytest.fixture(scope="module")
def damaged(workplace, recipe, tmp_path_factory):
    """A folder of stores in which the frames of the video 2.mp4 are damaged, and their file."""
    where = tmp_path_factory.mktemp("damaged")
    own = recipe(data__store=str(where))
    store = Experiment.open(own, where / "w").source.store
    path = store.path("2.mp4")
    content = bytearray(path.read_bytes())
    frame = store.read("2.mp4", np.array([0]))[0]
    at = content.index(frame.tobytes()[:64])
    content[at] ^= 1
    path.write_bytes(content)
    return where, path


def test_damaged_frames_empty_their_rows_up_to_a_budget_then_end_the_run_with_their_files(
    damaged, tmp_path, recipe
):
    where, path = damaged
    with pytest.raises(TrainingError) as error:
        changes = {"data__store": str(where), "evaluation__every": NEVER, "checkpoint__every": 2}
        train(Experiment.open(recipe(**changes, max_unreadable=4), tmp_path))
    message = str(error.value)
    assert (
        "5 sequences of stage visual could not be read, more than config.max_unreadable=4"
        in message
    )
    assert f"The videos are 2.mp4, in the files {path}. Delete these files" in message
    assert "of a prepared folder, rvllm_jax.prepare before" in message
    records = [r for r in metrics.read(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["bad_rows"] for r in records][:4] == [1, 2, 3, 4]  # one an epoch
    checkpoints = Checkpoints(tmp_path)
    position = checkpoints.training.read_meta(4)["position"]
    checkpoints.close()
    assert position["unreadable"] == {"2.mp4": 4} and position["bad_rows"] == 4


@pytest.mark.slow
def test_damaged_frames_are_counted_in_the_validation_loss_and_refused_above_the_budget(
    damaged, tmp_path, recipe, record, caplog
):
    where, path = damaged
    held = [record(6), record(2, "2.mp4"), record(2, "2.mp4") | {"id": "again"}]  # a row each
    (tmp_path / "held.json").write_text(json.dumps(held))
    changes = {"data__store": str(where), "data__validation": str(tmp_path / "held.json")}
    changes |= {"stages.visual.steps": 2, "stages.visual.warmup": 1, "evaluation__every": NEVER}
    train(Experiment.open(recipe(**changes, max_unreadable=2), tmp_path / "a"))
    held = [r for r in metrics.read(tmp_path / "a" / "metrics.jsonl") if r["kind"] == "validation"]
    assert [r["bad_rows"] for r in held] == [2] and np.isfinite(held[0]["loss"])
    told = "validation sequences of stage visual: 2 could not be read, of the videos 2.mp4"
    assert told in caplog.text
    experiment = Experiment.open(recipe(**changes), tmp_path / "b")
    dataset = experiment.dataset(experiment.source.splits["validation"])
    stage = experiment.recipe.stages[0]
    with pytest.raises(
        TrainingError, match="2 validation sequences of stage visual could not"
    ) as error:
        validation_loss(lambda *_: (1.0, 1.0), {}, {}, dataset, experiment.layout, stage, most=1)
    assert f"in the files {path}. Delete these files" in str(error.value)


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A real small file system; where none may be mounted, a disk that says that it is small."""
    mount = functools.partial(subprocess.run, capture_output=True)
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(where)]
    if shutil.which("mount") and mount(command).returncode == 0:
        yield where
        mount(["umount", str(where)], check=True)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
        yield where


def test_no_space_for_a_checkpoint_says_so_and_what_to_do(small_disk, recipe):
    with pytest.raises(CheckpointError, match="no space.*checkpoint of step") as error:
        run(recipe(evaluation__every=NEVER), small_disk)
    assert str(small_disk) in str(error.value) and "Free space there" in str(error.value)
