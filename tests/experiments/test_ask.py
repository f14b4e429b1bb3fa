"""Evaluation of the embedded dataset's splits, controls included, on an untrained model."""

import collections
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rvllm_jax.config.check import resolve
from rvllm_jax.data.shapes import build as shapes
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.experiments.ask import _unreadable, _warn_of_long, ask_all
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.report import run_report
from rvllm_jax.generation.engine import Prediction
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.training.diagnostics import TrainingError
from rvllm_jax.training.loop import Result
from rvllm_jax.training.state import Position
from rvllm_jax.weights.hf_config import llama_values, read_llama_config

SIZES = {"train": 4, "validation": 1, "test": 6, "heldout": 2}
SETTINGS = {
    **{"data.questions": 3, "evaluation.train_videos": 2, "evaluation.batch": 8},
    **{"evaluation.max_new": 3, "tokenizer.vocab_size": 300, "data.context": 500},
}


@pytest.fixture(scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def experiment(joint, tmp_path_factory):
    """That of configs/joint.py, with few clips, its decoder's sizes out of a folder."""
    folder = tmp_path_factory.mktemp("run")
    config = joint()
    with config.unlocked():
        config.update_from_flattened_dict(SETTINGS | {"data.store": str(folder / "data")})
    sizes = dataclasses.replace(DECODERS["tiny"], vocab_size=SETTINGS["tokenizer.vocab_size"])
    config.model.decoder = str(tmp_path_factory.mktemp("decoder"))
    values = json.dumps(llama_values(sizes, "float32"))
    (Path(config.model.decoder) / "config.json").write_text(values)
    build = shapes.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shapes, "build", lambda *a, **k: build(*a, **k | dict(sizes=SIZES, workers=0))
        )
        return Experiment.open(resolve(config), folder)


@pytest.fixture(scope="module")
def result(experiment, quick_compilation):
    """Untrained arrays; those of the decoder large enough that the frames decide some answers."""
    params, stats = jax.jit(experiment.model.init)(jax.random.key(0))
    params = {n: p * 3 if n.startswith("decoder/layers") else p for n, p in params.items()}
    position = Position(done=7, bad_rows=1, skipped_all=2, seconds={"visual": 3.0, "joint": 4.0})
    return Result(params, stats, position)


@pytest.fixture(scope="module")
def evaluated(experiment, result):
    return ask_all(experiment, result, experiment.datasets.asked)


def written(experiment, split: str, clips: int) -> list[tuple[str, str, str]]:
    """(type, question, answer) of the first clips of a split, from the annotations themselves."""
    path = Path(experiment.recipe.data.store) / "shapes" / f"{split}.json"
    turns = [t for record in json.loads(path.read_text())[:clips] for t in record["conversations"]]
    return [
        (q["type"], q["value"], a["value"]) for q, a in zip(turns[::2], turns[1::2], strict=True)
    ]


def test_the_sizes_of_the_decoder_are_kept_beside_the_tokenizer(experiment):
    assert read_llama_config(experiment.workdir / "decoder") == experiment.recipe.llama


def test_every_split_is_answered_and_counted_by_question_type(experiment, evaluated):
    results, _ = evaluated
    asked = {"train": 2, "test": SIZES["test"], "heldout": SIZES["heldout"]}
    assert list(results["accuracy"]) == list(results["counts"]) == list(asked)
    for split, clips in asked.items():
        kinds = collections.Counter(kind for kind, *_ in written(experiment, split, clips))
        assert results["counts"][split] == {"all": kinds.total()} | kinds
        assert results["accuracy"][split].keys() == results["counts"][split].keys()
        assert all(0 <= share <= 1 for share in results["accuracy"][split].values())


def test_the_controls_ask_the_questions_of_unseen_clips(experiment, evaluated):
    results, _ = evaluated
    assert results["control_split"] == "test"
    assert list(results["controls"]) == ["blind", "shuffled", "swapped"]
    for shares in results["controls"].values():
        assert shares.keys() == results["counts"]["test"].keys()
    answers = {}
    for _, question, answer in written(experiment, "test", SIZES["test"]):
        answers.setdefault(question.removeprefix("<video>\n"), []).append(answer)
    recurring = [own for own in answers.values() if len(set(own)) > 1]
    found = results["recurring"]
    assert found.keys() == {"count", "plain", "blind", "swapped"}
    assert found["count"] == sum(map(len, recurring)) > 0
    assert found["swapped"].keys() == {"changed", "follows"} and found["swapped"]["changed"] > 0


def test_the_report_holds_what_was_found(evaluated, tmp_path):
    results, samples = evaluated
    assert [s.split for s in samples] == ["train"] * 2 + ["test"] * 4 + ["heldout"] * 2
    folder = run_report.write(tmp_path, results, samples)
    kept = json.loads((folder / "results.json").read_text())
    assert kept == results
    assert kept["seconds"] == {"visual": 3.0, "joint": 4.0} and kept["steps"] == 7
    assert (kept["test_clips"], kept["fusion"]) == (
        "1x1",
        "",
    )  # of one view there is nothing to fuse
    assert (kept["skipped_updates"], kept["unreadable_rows"], kept["set_aside"]) == (2, 1, {})
    table = (folder / "accuracy.md").read_text()
    assert "| question type | train |  test | heldout | blind | shuffled | swapped |" in table
    assert f"recurs with different answers ({results['recurring']['count']})" in table


def test_of_one_training_video_nothing_is_swapped(experiment, result):
    dataset = experiment.dataset(experiment.source.splits["train"][:1])
    results, _ = ask_all(experiment, result, {"train": dataset})
    assert results["control_split"] == "train" and list(results["controls"]) == [
        "blind",
        "shuffled",
    ]
    assert results["recurring"] == {"count": 0}


@pytest.fixture(scope="module")
def damaged(experiment, tmp_path_factory):
    """The experiment with a store in which the first test video is damaged, that video's name, its
    questions' number and the file; without controls."""
    videos = [c.video for c in experiment.source.splits["test"][:2]]
    folder = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(experiment.source.store.folder, folder)
    store = FrameStore(folder)
    path = store.path(videos[0])
    content = bytearray(path.read_bytes())
    content[content.index(store.read(videos[0], np.array([0])).tobytes()[:64])] ^= 1
    path.write_bytes(content)
    recipe = experiment.recipe
    recipe = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, controls=False)
    )
    source = dataclasses.replace(experiment.source, store=FrameStore(folder))
    own = dataclasses.replace(experiment, recipe=recipe, source=source)
    asked = own.source.splits["test"][:2]
    return own, {"test": own.dataset(asked)}, len(asked[0].turns), path


def test_questions_about_a_damaged_first_clip_are_wrong_counted_and_not_shown(
    damaged, result, tmp_path, caplog
):
    own, datasets, questions, _ = damaged
    results, samples = ask_all(own, result, datasets)
    assert results["unreadable_questions"] == {"test": questions}
    assert results["counts"]["test"]["all"] == len(datasets["test"].questions) > questions
    assert len(samples) == 1 and samples[0].question in {t.question for t in datasets["test"].turns}
    folder = run_report.write(tmp_path, results, samples)
    said = f"Questions whose frames could not be read, counted as wrong: test {questions}."
    assert said in (folder / "accuracy.md").read_text()
    video = own.source.splits["test"][0].video
    assert f"counted as wrong: {questions} could not be read, of the videos {video}" in caplog.text


def test_more_unreadable_questions_than_allowed_are_refused_with_their_files(damaged):
    own, datasets, questions, path = damaged
    dataset = datasets["test"]
    asked = [
        Prediction(number, "", [], failed="cannot be read" if example == 0 else "")
        for number, (example, _) in enumerate(dataset.questions)
    ]
    assert _unreadable(dataset, asked, "test", questions) == questions
    with pytest.raises(TrainingError) as error:
        _unreadable(dataset, asked, "test", questions - 1)
    assert f"{questions} questions of test could not be read, more than" in str(error.value)
    assert f"in the files {path}. Delete these files" in str(error.value)


def test_true_answers_that_are_longer_than_those_given_are_counted(experiment, caplog):
    dataset = experiment.dataset(experiment.source.splits["test"])
    lengths = sorted(len(experiment.tokenizer.encode(turn.answer)) for turn in dataset.turns)

    def warn(max_new):
        caplog.clear()
        evaluation = dataclasses.replace(experiment.recipe.evaluation, max_new=max_new)
        recipe = dataclasses.replace(experiment.recipe, evaluation=evaluation)
        _warn_of_long(dataclasses.replace(experiment, recipe=recipe), dataset, "test")
        return caplog.text

    count = lengths.count(lengths[-1])
    text = warn(lengths[-1] - 1)
    assert f"test: {count} of {len(lengths)} true answers" in text
    assert f"raise it to {lengths[-1]}" in text
    assert not warn(lengths[-1])
