"""Whose configuration a working directory is."""

import contextlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rvllm_jax.config.check import resolve
from rvllm_jax.data.text import tokenizer
from rvllm_jax.training.workdir import (
    WorkdirError,
    claim,
    keep_decoder,
    keep_start,
    weights_fingerprint,
)
from rvllm_jax.weights.hf_config import llama_values

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


def start_folder(folder, llama, rope_theta=1e4):
    """What a run starts from: a decoder's sizes, a tokenizer, weights; others by `rope_theta`."""
    tokenizer.train([f"which way does it go at {rope_theta}?"] * 3, 300).save(folder)
    values = llama_values(llama, "float32") | {"rope_theta": rope_theta, "rope_parameters": None}
    (folder / "model.json").write_text(json.dumps({"decoder": values}))
    save_file({"x": np.full((2, 3), rope_theta, np.float32)}, folder / "model.safetensors")
    return str(folder)


def named(config, folder):
    """`config` with all that a run starts from in `folder`."""
    config = json.loads(json.dumps(config))
    config["model"] |= {"decoder": folder, "weights": folder}
    config["tokenizer"]["folder"] = folder
    return config


def test_files_that_were_moved_are_the_same_and_others_are_not(tmp_path, joint, recipe):
    run, llama = tmp_path / "run", recipe().llama
    start = start_folder(tmp_path / "start", llama)
    other = start_folder(tmp_path / "other", llama, 5e4)
    config = named(joint().to_dict(), start)
    claim(run, config)
    keep_decoder(resolve(config), run)
    keep_start(resolve(config), run)
    tokenizer.load(start).save(run / "tokenizer")
    with_checkpoint(run)
    before = (run / "config.json").read_bytes()
    (tmp_path / "start").rename(tmp_path / "moved")
    moved = named(config, str(tmp_path / "moved"))
    for names in (moved, config):  # by its first name nothing is asked for any more
        claim(run, names)
        assert (run / "config.json").read_bytes() == before
    for room, key in (("model", "decoder"), ("model", "weights"), ("tokenizer", "folder")):
        changed = json.loads(json.dumps(moved))
        changed[room][key] = other
        with pytest.raises(WorkdirError, match=rf"{room}\.{key}: .*/start.* there, .*/other.* now"):
            claim(run, changed)
    (run / "start.json").unlink()  # as an earlier version left it: what is not known is no other
    moved["model"]["weights"] = other
    claim(run, moved)
    moved["model"]["weights"] = str(tmp_path / "absent")
    with pytest.raises(WorkdirError, match="model.weights"):
        claim(run, moved)
    assert (run / "config.json").read_bytes() == before


def test_the_weights_that_a_run_starts_from_are_noted_until_it_is_bound(tmp_path, joint, recipe):
    run, llama = tmp_path / "run", recipe().llama
    for theta in (1e4, 5e4):  # a start with other weights takes it over
        config = named(joint().to_dict(), start_folder(tmp_path / f"{theta:g}", llama, theta))
        keep_start(resolve(config), run)
        noted = json.loads((run / "start.json").read_text())["weights"]
        assert noted == weights_fingerprint(config["model"]["weights"])
    with_checkpoint(run)
    config["model"]["weights"] = "gone"
    keep_start(resolve(config), run)
    assert json.loads((run / "start.json").read_text())["weights"] == noted
    assert weights_fingerprint("") == weights_fingerprint(" ") != noted


def test_data_elsewhere_is_compared_before_the_first_update_and_must_be_there(tmp_path, joint):
    run, config = tmp_path / "run", joint().to_dict()
    config["data"] |= {"videos": "before", "conversations": "before.json"}
    claim(run, config)
    with_checkpoint(run)
    before = (run / "config.json").read_bytes()
    config["data"] |= {"videos": str(tmp_path / "now"), "conversations": str(tmp_path / "now.json")}
    with pytest.raises(WorkdirError, match="data.conversations.*\n.*data.videos"):
        claim(run, config)
    (tmp_path / "now").mkdir()
    (tmp_path / "now.json").write_text("[]")
    claim(run, config)
    assert (run / "config.json").read_bytes() == before
    with pytest.raises(WorkdirError, match="data.validation"):  # there was none
        config["data"]["validation"] = str(tmp_path / "now.json")
        claim(run, config)
