"""Configurations of earlier versions: by the values of then, silently; what cannot be is named."""

import json

import jax.numpy as jnp
import pytest

from rvllm_jax.config import migrate
from rvllm_jax.config.check import ConfigError, resolve
from rvllm_jax.config.migrate import ADDED, AddedKey, current
from rvllm_jax.system import file_layout
from rvllm_jax.system.file_layout import LayoutError


def stored(joint, *lacking: str) -> dict:
    """The recipe as a version before these keys stored it."""
    config = joint().to_dict()
    for key in lacking:
        *sections, name = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        del node[name]
    return json.loads(json.dumps(config))


def test_what_an_earlier_version_lacked_has_the_value_of_then(joint):
    config = stored(joint, *(added.key for added in ADDED))
    before = repr(config)
    recipe = resolve(current(config))
    assert repr(config) == before
    data, evaluation = recipe.data, recipe.evaluation
    # 402146a of 2026-11-25, data/clips.py: every step-th frame from one start, as many as fit.
    assert (data.short, data.long, data.flip) == ("pad", "window", False)
    # The same, training/loop.py: damaged rows were counted and ended nothing.
    assert recipe.max_unreadable == migrate.UNLIMITED
    # 0951cbe of 2026-11-28, experiments/run.py: each test clip answered, and the most counted.
    assert (evaluation.test_clips, evaluation.fusion) == ("1x1", "vote")
    assert evaluation.probe_videos == 1


def test_what_changes_nothing_without_a_line_in_the_tables_has_the_schemas_default(joint):
    config = stored(joint, "model.weights", "model.random", "stages.joint.lora")
    for spec in config["stages"]["joint"]["optimizers"].values():
        del spec["moments"]
    recipe = resolve(current(config))
    assert (recipe.model.weights, recipe.model.random, recipe.lora) == ("", "", None)
    assert {spec.moments for spec in recipe.stages[-1].optimizers.values()} == {"float32"}
    assert current(stored(joint)) == current(current(stored(joint)))
    assert current({"no": "configuration"})["no"] == "configuration"  # for the check to refuse


def test_a_key_that_is_there_keeps_its_value(joint):
    config = stored(joint)
    config["max_unreadable"], config["data"]["short"] = 7, "loop"
    now = current(config)
    assert (now["max_unreadable"], now["data"]["short"]) == (7, "loop")


def test_renamed_and_removed_keys_are_migrated(joint, monkeypatch):
    config = stored(joint)
    config["data"]["fps"] = 3
    for stage in config["stages"].values():
        stage["rate"], stage["gone"] = stage.pop("warmup"), True
    renamed = {"data.fps": "data.per_second", "stages.*.rate": "stages.*.warmup"}
    with monkeypatch.context() as tables:
        tables.setattr(migrate, "ADDED", (AddedKey("stages.*.later", 5, "a test"),))
        tables.setattr(migrate, "RENAMED", renamed)
        tables.setattr(migrate, "REMOVED", {"stages.*.gone": "leave it out"})
        now = current(config)
    assert now["data"]["per_second"] == 3 and "fps" not in now["data"]
    for stage in now["stages"].values():
        assert stage.pop("later") == 5 and not {"rate", "gone"} & stage.keys()
    del now["data"]["per_second"]
    assert now == current(stored(joint))


def test_a_stored_configuration_that_does_not_fit_is_refused_by_its_file(joint, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(stored(joint, "data.frames")))
    with pytest.raises(ConfigError, match=rf"^{path}: config.data lacks frames"):
        resolve(migrate.read(path), path)
    path.write_text(json.dumps(stored(joint) | {"tomorrow": 1}))
    with pytest.raises(ConfigError, match=rf"^{path}: config has unknown keys \['tomorrow'\]"):
        resolve(migrate.read(path), path)


def test_a_configuration_of_a_newer_version_is_refused_as_such(joint, tmp_path):
    path, number = tmp_path / "config.json", file_layout.RUN.number
    config = stored(joint)
    path.write_text(json.dumps(file_layout.RUN.stamp(config)))
    assert migrate.read(path) == current(config)
    path.write_text(json.dumps(config | {"layout_number": number + 1, "tomorrow": 1}))
    with pytest.raises(LayoutError, match=rf"^{path}: a working directory of layout {number + 1}, "
                       "made by a newer version"):  # fmt: skip
        migrate.read(path)


def test_parameters_that_came_are_zeros_in_what_was_trained_before():
    targets = {"projector/places/embedding": jnp.ones((4, 2)), "decoder/norm/scale": jnp.ones(2)}
    params = migrate.with_added_parameters({}, targets)
    assert params.keys() == {"projector/places/embedding"}
    assert not params["projector/places/embedding"].any()
    assert migrate.with_added_parameters(targets, targets) == targets
    assert migrate.with_added_parameters({}, {}) == {}
    said = migrate.missing_parameters(["params/projector/places/embedding"])
    assert "came with b05f7d2 of 2026-11-25" in said
    assert migrate.missing_parameters(["params/decoder/norm/scale"]) == ""
