"""Starts: what is refused before the data is touched, what is mended there, what is reused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from rvllm_jax.config.check import ConfigError
from rvllm_jax.data.batches.packing import ContextError, PackingError, Sequences
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.text.tokenizer_config import TokenizerError
from rvllm_jax.experiments import experiment as opening
from rvllm_jax.experiments import train as running
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.saved.tokenizer import open_tokenizer
from rvllm_jax.sharding.mesh import MeshError
from rvllm_jax.training.stages import StageError
from rvllm_jax.training.workdir import claim
from rvllm_jax.types import Example, Turn
from rvllm_jax.weights.safetensors import WeightsError

JOINT = {"schedule": "visual,joint", "stages__joint__batch": 8}


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"mesh__data": 3}, MeshError, "data=3 .*does not cover the 8 devices"),
        (JOINT | {"stages__joint__batch": 4}, StageError, "joint.batch=4 .*multiple of 8 devices"),
        (JOINT | {"stages__joint__table": (("(enc", "visual"),)}, StageError, r"table: '\(enc'"),
        (JOINT | {"stages__joint__table": (("enc.*", "visual"),)}, StageError, "no row of its tab"),
        (
            JOINT | {"stages__visual__batch": 4, "stages__joint__batch": 4},
            StageError,
            r"visual\.batch=4 .*\n.*joint\.batch=4 ",  # both at once
        ),
        ({"model__random": "(enc"}, WeightsError, r"config\.model\.random='\(enc' is no regex: "),
        ({"evaluation__batch": 4}, StageError, "evaluation.batch=4 .*multiple of the 8 devices"),
        ({"tokenizer__folder": "/nowhere"}, TokenizerError, "/nowhere: no such folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_data_is_touched(
    recipe, tmp_path, monkeypatch, changes, error, message
):
    def decode(*_, **__):
        raise AssertionError("the data was touched")

    monkeypatch.setattr(opening, "open_data", decode)
    with pytest.raises(error, match=message):
        Experiment.open(recipe(**changes), tmp_path)


def test_a_start_says_whose_statistics_batchnorm_takes(recipe, tmp_path, caplog):
    class Opened(Exception):
        """Where the data would be prepared."""

    def stop(*_, **__):
        raise Opened

    caplog.set_level("INFO")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Opened):
        patch.setattr(opening, "open_data", stop)
        cut = {"stages__visual__accumulate": 2, "stages__visual__batch": 16}
        Experiment.open(recipe(**JOINT | cut), tmp_path)
    assert (
        "stage visual: BatchNorm's statistics are those of each micro-batch of 8 clips"
        in caplog.text
    )
    assert "stage joint: BatchNorm" not in caplog.text


def source(text: str) -> SimpleNamespace:
    """Training data of one pair."""
    return SimpleNamespace(splits={"train": [Example("0", "v", (Turn(text, text),), text)]})


def test_the_tokenizer_is_that_of_the_text_until_a_checkpoint_depends_on_it(recipe, tmp_path):
    first = open_tokenizer(recipe(), source("red green"), tmp_path)
    second = open_tokenizer(recipe(), source("blue white"), tmp_path)
    assert first.fingerprint != second.fingerprint
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    third = open_tokenizer(recipe(), source("red green"), tmp_path)
    kept = tokenizers.load(tmp_path / "tokenizer")
    assert second.fingerprint == third.fingerprint == kept.fingerprint


def test_the_users_tokenizer_is_taken_and_kept(recipe, tmp_path):
    own = tokenizers.train(["yellow"], 280)
    own.save(tmp_path / "own")
    changes = {"tokenizer__folder": str(tmp_path / "own"), "model__decoder": "smollm2-135m"}
    taken = open_tokenizer(recipe(**changes), source("red"), tmp_path / "run")
    assert taken.fingerprint == own.fingerprint
    assert tokenizers.load(tmp_path / "run" / "tokenizer").fingerprint == own.fingerprint
    tokenizers.train([chr(c) * 2 for c in range(0x4E00, 0x5200)], 1400).save(tmp_path / "own")
    changes["model__decoder"] = "tiny"  # its vocabulary holds fewer
    with pytest.raises(ConfigError, match=f"{tmp_path / 'own'} has .* tokens"):
        open_tokenizer(recipe(**changes), source("red"), tmp_path / "other")


def test_saving_a_tokenizer_touches_no_file_that_is_right_and_leaves_none_half(
    tmp_path, monkeypatch
):
    first, second = tokenizers.train(["red"], 280), tokenizers.train(["blue"], 280)
    first.save(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in before} == {"tokenizer.json", "tokenizer_config.json"}
    first.save(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        second.save(tmp_path)
    assert tokenizers.load(tmp_path).fingerprint == first.fingerprint


def test_what_ended_a_start_is_mended_in_the_same_working_directory(recipe, settings, tmp_path):
    def start(**changes) -> Experiment:
        keys = {key.replace("__", "."): value for key, value in changes.items()}
        claim(tmp_path, settings | keys)
        experiment = Experiment.open(recipe(**changes), tmp_path)
        _ = experiment.datasets
        return experiment

    with pytest.raises(PackingError, match="data.context = 32: raise it to"):
        start(data__context=32, tokenizer__vocab_size=290)
    mended = start()
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["data.context"] == 96
    assert mended.tokenizer.vocab_size > 290  # nothing of the first start is left


def test_a_context_that_is_too_short_is_reported_for_all_inputs_and_splits_at_once(
    workplace, recipe, record, tmp_path
):
    question, answer, *_ = record(1)["conversations"]
    asked = {"train": "Why? " * 40, "validation": "Why? " * 60}
    for split, text in asked.items():
        conversations = [question | {"value": text}, answer]
        (tmp_path / split).write_text(
            json.dumps([record(1) | {"conversations": conversations, "caption": "long " * 99}])
        )
    keys = {"data__conversations": str(tmp_path / "train")}
    keys |= {"data__validation": str(tmp_path / "validation")}
    keys |= {"schedule": "language,visual,joint", "stages__joint__batch": 8}
    with pytest.raises(ContextError) as refused:
        _ = Experiment.open(recipe(**keys), tmp_path / "run").datasets
    message, faults = str(refused.value), refused.value.faults
    assert list(faults) == ["caption_in_slot", "video"]
    assert all(f"stage.input is {input!r}" in message for input in faults)
    longest = max(tokens for tokens, _ in faults.values())
    assert message.endswith(f"config.data.context = 96: raise it to {longest} or more")
    mended = Experiment.open(recipe(**keys, data__context=longest), tmp_path / "run")
    assert mended.datasets.train.keys() == faults.keys()
    with pytest.raises(ContextError, match=f"raise it to {longest} or"):
        short = recipe(**keys, data__context=longest - 1)
        _ = Experiment.open(short, tmp_path / "run").datasets


def test_results_of_other_questions_are_not_printed_again(tmp_path, monkeypatch, recipe):
    rows = Sequences(np.zeros(1, np.int32), np.arange(2), np.zeros(1, np.int32))
    asked = SimpleNamespace(
        examples=source("red").splits["train"],
        sequences=rows,
        options=SimpleNamespace(input="caption_in_slot"),
    )
    result = SimpleNamespace(position=SimpleNamespace(done=7))
    made_with = {"model": "trained once"}
    monkeypatch.setattr(running, "_made_with", lambda *_: dict(made_with))
    table = {"accuracy": {}, "controls": {}, "counts": {}, "seconds": {}, "steps": 7}
    evaluated = []
    experiment = SimpleNamespace(datasets=SimpleNamespace(asked={"test": asked}))
    monkeypatch.setattr(running.Experiment, "open", lambda *_: experiment)
    monkeypatch.setattr(running, "train", lambda _: result)
    monkeypatch.setattr(running, "ask_all", lambda *_: evaluated.append(1) or (dict(table), []))
    first = running.run(recipe(), tmp_path)
    assert running.run(recipe(), tmp_path) == first and len(evaluated) == 1
    asked.examples = source("green").splits["train"]
    assert running.run(recipe(), tmp_path)["asked"] != first["asked"] and len(evaluated) == 2
    result.position.done = 8
    running.run(recipe(), tmp_path)
    assert len(evaluated) == 3
    made_with["model"] = "trained again"  # with another seed, say
    assert running.run(recipe(), tmp_path)["made_with"] == made_with and len(evaluated) == 4
