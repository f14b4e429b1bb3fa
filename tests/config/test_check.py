"""Configurations that do not fit together are refused before anything is allocated, by key."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from rvllm_jax.config import keys
from rvllm_jax.config.check import ConfigError, refuse_unknown, resolve
from rvllm_jax.config.schema import Recipe
from rvllm_jax.models.lora import LoRA

JOINT = Path(__file__).parents[2] / "configs" / "joint.py"


def get_config(arg: str = "tiny") -> ConfigDict:
    spec = importlib.util.spec_from_file_location("joint", JOINT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


# What the messages below speak of, whatever the recipe's values become.
PLAIN = {
    **dict(data__frames=8, data__interval=4, data__stride=2, data__short_side=36, data__crop=32),
    **dict(data__context=320, model__tokens="grid", model__grid=4, tokenizer__vocab_size=512),
    **dict(stages__joint__batch=8, stages__joint__steps=200, stages__joint__epochs=0),
}


def changed(arg: str = "tiny", **changes) -> ConfigDict:
    """The recipe with other values: changed(data__frames=4)."""
    config = get_config(arg)
    if arg == "tiny":
        changes = PLAIN | changes
    with config.unlocked():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def refusal(config: ConfigDict) -> str:
    with pytest.raises(ConfigError) as error:
        resolve(config)
    return str(error.value)


def test_tiny_resolves():
    recipe = resolve(get_config())
    assert [s.name for s in recipe.stages] == ["language", "visual", "joint"]
    assert [s.input for s in recipe.stages] == ["caption_in_slot", "video", "video"]
    assert recipe.data.step * recipe.data.stride == recipe.data.interval
    assert recipe.llama.vocab_size == recipe.tokenizer.vocab_size
    assert recipe.layout.frames == recipe.data.frames
    assert all(isinstance(stage.table, tuple) for stage in recipe.stages)


def test_a_resnet_s_norm_is_a_key():
    assert resolve(changed(model__norm="group")).resnet.norm == "group"


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"configs/joint\.py:huge is unknown.*tiny, paper"):
        get_config("huge")


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("bacth", ["--config.bacth", "config has no key 'bacth'", "'checkpoint'", "correct it"]),
        ("data.fames", ["--config.data.fames", "config.data has", "perhaps to 'frames'"]),
        ("stages.joint.lr", ["config.stages.joint has no key 'lr'", "'optimizers'"]),
        ("seed.x", ["config.seed is a single value", "--config.seed"]),
    ],
)
def test_an_unknown_key_of_an_override_is_refused(key, named):
    refuse_unknown(get_config(), ["data.frames", "stages.joint.table[0]"])
    with pytest.raises(ConfigError) as error:
        refuse_unknown(get_config(), ["data.frames", key])
    assert [part for part in named if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("huge", ["config has unknown", "huge", "schedule"]),
        ("mesh__rows", ["config.mesh", "rows", "fsdp"]),
        ("data__fames", ["config.data", "fames", "frames"]),
        ("tokenizer__size", ["config.tokenizer", "size", "vocab_size"]),
        ("model__depth", ["config.model", "depth", "encoder"]),
        ("evaluation__often", ["config.evaluation", "often", "every"]),
        ("checkpoint__often", ["config.checkpoint", "often", "keep"]),
        ("stages__joint__lr", ["config.stages.joint", "lr", "warmup"]),
        (
            "stages__visual__optimizers__sgd__rate",
            ["config.stages.visual.optimizers.sgd", "rate", "lr"],
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_ones(where, named):
    message = refusal(changed(**{where: 1}))
    assert all(name in message for name in named), message


@pytest.mark.parametrize(
    "key",
    [
        *("schedule", "max_skipped", "mesh", "mesh.fsdp", "data.crop", "tokenizer.folder"),
        *("model.grid", "evaluation.every", "checkpoint.every", "checkpoint.keep"),
        *("stages.joint.batch", "stages.joint.table", "stages.joint.optimizers"),
        "stages.visual.optimizers.sgd.lr",
    ],
)
def test_a_missing_key_is_named(key):
    config = changed()
    *path, name = key.split(".")
    section = config
    for part in path:
        section = section[part]
    with config.unlocked():
        del section[name]
    message = refusal(config)
    assert name in message and "lack" in message and ".".join(["config", *path]) in message


@pytest.mark.parametrize(
    "key",
    [
        *("parallel", "data.short", "data.long", "data.encoding", "data.template"),
        *("model.encoder", "model.norm"),
        *("model.tokens", "model.projector", "model.decoder", "model.dtype", "model.remat"),
        *("stages.joint.input", "stages.joint.schedule", "stages.visual.optimizers.sgd.kind"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_choices(key):
    message = refusal(changed(**{key.replace(".", "__"): "huge"}))
    assert f"config.{key}='huge' is not one of " in message
    value = changed()
    for part in key.split("."):
        value = value[part]
    assert value in message.split(" is not one of ")[1].split(", ")


def test_what_can_name_no_folder_is_no_decoder():
    for decoder in ("", "x" * 300):
        assert f"decoder={decoder!r} is not one of " in refusal(changed(model__decoder=decoder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("data.workers", -1),
        ("data.max_bad", 5.0),
        ("data.max_bad", float("nan")),
        ("model.loss_chunk", -3),
        ("stages.joint.clip", -1.0),
        ("stages.joint.warmup", -5),
        ("stages.joint.epochs", -2),
        ("stages.joint.optimizers.visual.lr", -1.0),
        ("stages.joint.optimizers.visual.b1", 1.5),
        ("stages.joint.optimizers.visual.decay", -0.1),
        ("stages.visual.optimizers.sgd.momentum", 1.0),
    ],
)
def test_numbers_out_of_their_range_are_refused(key, value):
    message = refusal(changed(**{key.replace(".", "__"): value}))
    assert f"config.{key}={value} must be 0 or more" in message


def test_a_vocabulary_that_the_decoder_does_not_hold_is_refused():
    large = changed(model__decoder="smollm2-135m", tokenizer__vocab_size=64000)
    assert "config.tokenizer.vocab_size=64000 exceeds the 49152" in refusal(large)


def test_pmap_takes_all_devices():
    assert resolve(changed(parallel="pmap", mesh__data=jax.local_device_count()))
    assert "config.mesh.data=3 to -1" in refusal(changed(parallel="pmap", mesh__data=3))


@pytest.mark.parametrize(
    "key",
    [
        *("data.frames", "data.stride", "data.questions", "evaluation.every", "evaluation.batch"),
        *("checkpoint.every", "checkpoint.keep", "log_every", "max_skipped", "model.grid"),
        *("stages.visual.batch", "stages.visual.accumulate"),
    ],
)
def test_numbers_must_be_positive(key):
    assert f"config.{key}=0 must be positive" in refusal(changed(**{key.replace(".", "__"): 0}))


def test_no_unreadable_row_may_be_allowed_but_not_fewer():
    assert resolve(changed(max_unreadable=0)).max_unreadable == 0
    message = refusal(changed(max_unreadable=-1))
    assert "config.max_unreadable=-1 must be 0 or more" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(data__stride=3, data__interval=4), ["data.stride=3", "data.interval=4"]),
        (dict(data__crop=64), ["data.crop=64", "data.short_side=36"]),
        (
            dict(model__grid=5, data__context=400),
            ["model.grid=5", "4 x 4", "model.encoder=narrow", "data.crop=32"],
        ),
        (
            dict(data__frames=20, model__tokens="grid", model__grid=4, data__context=320),
            ["model.tokens='grid'", "320 visual", "data.context=320", "model.grid", "data.frames"],
        ),
        (
            dict(data__context=500, evaluation__max_new=13),
            ["data.context=500", "evaluation.max_new=13", "512 positions", "model.decoder=tiny"],
        ),
        (dict(data__flip=True), ["data.flip=True", "data.videos='shapes'", "False"]),
        (dict(model__dtype="float64"), ["model.dtype='float64'", "JAX_ENABLE_X64=1"]),
        (dict(tokenizer__vocab_size=259), ["tokenizer.vocab_size=259", "260 or more"]),
        (dict(parallel="pmap", mesh__fsdp=2), ["parallel='pmap'", "mesh.fsdp", "mesh.tensor"]),
        (dict(parallel="pmap", mesh__tensor=2), ["parallel='pmap'", "mesh.fsdp", "mesh.tensor"]),
        (dict(stages__joint__epochs=2), ["stages.joint", "steps or epochs"]),
        (dict(stages__joint__steps=0), ["stages.joint", "steps or epochs"]),
        (dict(stages__joint__accumulate=3), ["stages.joint.batch=8", "accumulate=3"]),
        (
            dict(stages__joint__warmup=200),
            ["config.stages.joint.warmup=200", "config.stages.joint.steps=200", "peak"],
        ),
        (dict(data__videos="folder"), ["data.videos", "data.conversations"]),
        *(
            ({f"data__{key}": "mine.json"}, [f"data.{key}='mine.json'", "data.videos='shapes'"])
            for key in ("conversations", "validation", "test")
        ),
        (dict(schedule="visual,later"), ["schedule='visual,later'", "later", "joint"]),
        (dict(schedule="joint,joint"), ["schedule='joint,joint'", "once"]),
        (dict(schedule=""), ["schedule=''", "joint"]),
    ],
)
def test_what_does_not_fit_together_is_refused_by_its_keys(changes, named):
    message = refusal(changed(**changes))
    assert all(name in message for name in named), message


def test_the_largest_and_smallest_values_that_fit_are_taken():
    changes = dict(data__context=500, evaluation__max_new=12, tokenizer__vocab_size=260)
    resolve(changed(**changes, stages__joint__warmup=199))
    own = dict(data__videos="folder", data__conversations="a.json", data__test="b.json")
    resolve(changed(**own, tokenizer__vocab_size=3, tokenizer__folder="mine"))  # none is trained
    with jax.enable_x64(True):
        resolve(changed(model__dtype="float64"))


def test_every_misfit_is_named_at_once():
    message = refusal(changed(data__stride=3, stages__joint__epochs=2))
    assert "data.stride=3" in message and "stages.joint" in message


def test_visual_tokens_of_the_paper_leave_room_but_a_full_grid_does_not():
    """100 frames of 7 x 7 places pass Vicuna's 4,096 positions; 4 x 4 do not."""
    fits = dict(model__tokens="grid", data__context=4096 - 128)
    assert resolve(changed("paper", **fits, model__grid=4)).layout.tokens == 1600
    assert "4900 visual tokens" in refusal(changed("paper", **fits, model__grid=7))


def test_adapters_are_a_choice_of_a_stage():
    assert resolve(get_config()).lora is None
    recipe = resolve(changed(stages__joint__lora__rank=4))
    assert recipe.lora == recipe.stages[2].lora == LoRA(4, 16.0, "attention/(q|v)")
    assert recipe.stages[0].lora is None
    stored = changed(**{"stages__joint__lora__rank": 4}).to_dict()
    assert resolve(stored) == recipe
    stored["stages"]["joint"]["lora"] = {"rank": 4}
    assert resolve(stored) == recipe  # what is left out has its default


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(joint__lora__rank=0), r"config\.stages\.joint\.lora\.rank=0 must"),
        (dict(joint__lora__rank=4, joint__lora__targets="q_proj"), "matches none of attention/q"),
        (dict(joint__lora__rank=4, visual__lora__rank=8), r"joint\.lora is .*rank=4.*rank=8"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes, message):
    changes = {f"stages__{key}": value for key, value in changes.items()}
    assert re.search(message, refusal(changed(**changes)))


def test_unknown_keys_of_adapters_are_refused():
    config = changed(stages__joint__lora__rank=4)
    with config.unlocked():
        config.stages.joint.lora.dropout = 0.1
    assert "config.stages.joint.lora has unknown keys ['dropout']" in refusal(config)


def test_the_home_folder_stands_for_a_tilde_in_every_path_of_a_recipe(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    keys.expand_paths(Recipe, config := changed(data__store="~/store", tokenizer__folder="~/w"))
    assert (config.data.store, config.tokenizer.folder) == ("/home/me/store", "/home/me/w")
