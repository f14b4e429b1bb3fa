"""Whose configuration a working directory is."""

import contextlib
import json

import pytest

from rvllm_jax.training.workdir import WorkdirError, claim

CONFIG = {"model": {"width": 128, "stem": "small"}, "stages": ({"name": "sgd", "lr": 0.1},)}


def with_checkpoint(workdir, place="checkpoints/2"):
    (workdir / place).mkdir(parents=True)
    return workdir


def test_claim_refuses_another_configuration_and_names_each_key(tmp_path):
    claim(tmp_path / "run", CONFIG)
    claim(with_checkpoint(tmp_path / "run"), CONFIG)
    other = {"model": {"width": 256}, "stages": ({"name": "sgd", "lr": 0.2},), "seed": 1}
    with pytest.raises(WorkdirError) as error:
        claim(tmp_path / "run", other)
    text = str(error.value)
    assert "model.width: 128 there, 256 now" in text
    assert 'model.stem: "small" there, absent now' in text
    assert "stages.0.lr: 0.1 there, 0.2 now" in text
    assert "seed: absent there, 1 now" in text
    assert "stages.0.name" not in text
    assert "--workdir" in text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["width"] == 128


@pytest.mark.parametrize(
    "place, bound",
    [
        *[("checkpoints", False), ("checkpoints/2.orbax-checkpoint-tmp", False), ("best", False)],
        *[("checkpoints/2", True), ("best/sgd/2", True), (".aside_checkpoints/3/4", True)],
        ("best/.aside_sgd/3/4", True),
    ],
)
def test_claim_binds_once_there_is_a_checkpoint(tmp_path, place, bound):
    claim(tmp_path, CONFIG)
    with_checkpoint(tmp_path, place)
    with pytest.raises(WorkdirError) if bound else contextlib.nullcontext():
        claim(tmp_path, CONFIG | {"model": {"width": 256}})
    width = json.loads((tmp_path / "config.json").read_text())["model"]["width"]
    assert width == (128 if bound else 256)


def test_claim_ignores_the_keys_it_is_told_and_keeps_their_new_value(tmp_path):
    claim(tmp_path, {"workers": {"count": 2}, "work": 1})
    with_checkpoint(tmp_path)
    claim(tmp_path, {"workers": {"count": 4}, "work": 1}, ignore=["workers"])
    assert json.loads((tmp_path / "config.json").read_text())["workers"]["count"] == 4
    with pytest.raises(WorkdirError, match="workers.count"):
        claim(tmp_path, {"workers": {"count": 5}, "work": 1}, ignore=["work"])


def test_claim_refuses_what_it_cannot_compare_with(tmp_path):
    with_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(WorkdirError, match="config.json: cannot be read"):
        claim(tmp_path, CONFIG)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WorkdirError, match="holds checkpoints, but not the config.json"):
        claim(tmp_path, CONFIG)
