"""A run, and what was exported of it, opened for use."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError, resolve
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.experiments.saved.open import describe_model, how_computed, open_model
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.system.lock import locked
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.checkpoint_folder import CheckpointError
from rvllm_jax.training.stages import open_layout
from rvllm_jax.training.state import StatePlacement
from rvllm_jax.training.workdir import (
    WorkdirError,
    claim,
    keep_decoder,
    read_config,
    with_kept_decoder,
)
from rvllm_jax.weights.hf_config import llama_values
from rvllm_jax.weights.safetensors import WeightsError


@pytest.fixture(scope="module")
def run(joint, tmp_path_factory):
    """A working directory with a checkpoint, its parameters in float32, computed in bfloat16; the
    folder that its decoder's sizes came from is no longer there."""
    workdir, sizes = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("sizes")
    config = joint()
    decoder = dataclasses.replace(DECODERS["tiny"], vocab_size=config.tokenizer.vocab_size)
    (sizes / "config.json").write_text(json.dumps(llama_values(decoder, "float32")))
    config.model.decoder = str(sizes)
    config.model.dtype = "bfloat16"
    recipe = resolve(config)
    claim(workdir, config.to_dict())
    model = build_model(recipe)
    placement = StatePlacement(model, recipe.stages, recipe.model.dtype, open_layout(recipe, model))
    arrays = placement.draw(jax.random.key(0))
    tokenizers.train(["what moves where?"] * 9, recipe.tokenizer.vocab_size).save(
        workdir / "tokenizer"
    )
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, arrays, {"position": {}})
    checkpoints.close()
    keep_decoder(recipe, workdir)
    shutil.rmtree(sizes)
    return workdir


def test_a_kept_decoder_is_not_written_by_a_second_host(run, tmp_path):
    """Hosts that write one file at the same time take each other's temporary file."""
    recipe = resolve(with_kept_decoder(json.loads((run / "config.json").read_text()), run))
    keep_decoder(recipe, tmp_path / "w")  # host 0
    kept = tmp_path / "w" / "decoder" / "config.json"
    before = kept.stat().st_ino
    keep_decoder(recipe, tmp_path / "w")
    assert kept.stat().st_ino == before


def stamps(folder):
    return {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_what_is_only_read_is_not_touched_and_may_be_in_work(run):
    before = stamps(run)
    open_model(run)
    assert stamps(run) == before
    with locked(run):
        open_model(run)


@pytest.mark.parametrize("best", ["", "joint"])
def test_files_of_another_start_than_the_checkpoint_s_are_noticed(run, tmp_path, best):
    """As where a second start wrote them before the first one's checkpoint."""
    workdir, config = tmp_path / "run", json.loads((run / "config.json").read_text())
    shutil.copytree(run, workdir)
    tokenizer = tokenizers.load(workdir / "tokenizer")
    checkpoints = Checkpoints(workdir)
    meta = {"config": read_config(run), "made_of": {"tokenizer": tokenizer.fingerprint}}
    save = functools.partial(checkpoints.save_best, best) if best else checkpoints.save
    save(5, {"params": {"a": np.ones(2)}}, meta)
    checkpoints.close()

    def write(**changes):
        (workdir / "config.json").write_text(json.dumps(config | changes))

    assert describe_model(workdir, best=best).recipe.seed == config["seed"]
    write(log_every=7, data=config["data"] | {"store": "elsewhere"})  # as a run may go on
    describe_model(workdir, best=best)
    write(seed=8, model=config["model"] | {"grid": 3})
    for reading in (
        lambda: describe_model(workdir, best=best),
        lambda: convert([str(workdir)], tmp_path / "out", best=best),
    ):
        with pytest.raises(WorkdirError) as error:
            reading()
        lines = f"model.grid: {config['model']['grid']} there, 3 now\n  seed: 0 there, 8 now"
        assert lines in str(
            error.value
        ) and "config.json: is not of the checkpoint of step 5" in str(error.value)
    write()
    tokenizers.train(["other words"] * 9, tokenizer.vocab_size).save(workdir / "tokenizer")
    with pytest.raises(WorkdirError, match="tokenizer: is not the tokenizer.*step 5"):
        describe_model(workdir, best=best)


def same(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), path)
        assert a[path].sharding == b[path].sharding, path


@pytest.mark.parametrize("mesh", [dict(data=-1, fsdp=1, tensor=1), dict(data=1, fsdp=4, tensor=2)])
def test_an_export_opens_as_the_run_it_is_of(run, tmp_path, mesh):
    of_run = open_model(run, mesh=mesh)
    assert of_run.step == 3 and "step 3" in of_run.source
    convert([str(run)], tmp_path / "out")
    of_export = open_model(tmp_path / "out", mesh=mesh)
    same(of_run.params, of_export.params)
    same(of_run.stats, of_export.stats)
    assert of_run.tokenizer.fingerprint == of_export.tokenizer.fingerprint
    assert of_run.recipe.llama == of_export.recipe.llama
    assert of_run.template == of_export.template
    assert of_run.fingerprint == of_export.fingerprint
    assert how_computed(of_run.recipe) == how_computed(of_export.recipe)
    kernel = of_run.params["decoder/layers/mlp/up/kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.size * mesh["fsdp"] * mesh["tensor"] == kernel.size


def test_neither_run_nor_export_needs_the_folder_of_the_decoder(run, tmp_path):
    convert([str(run)], tmp_path / "ours")
    convert([str(tmp_path / "ours")], tmp_path / "theirs", form="transformers")
    convert([str(tmp_path / "ours")], tmp_path / "again")
    config = json.loads((run / "config.json").read_text())
    gone = config["model"]["decoder"]
    with pytest.raises(ConfigError, match=f"decoder='{gone}'.*and there is no such folder"):
        resolve(config)
    continued = with_kept_decoder(config, run)
    recipe = resolve(continued)
    assert recipe.llama.vocab_size == config["tokenizer"]["vocab_size"]
    assert config["model"]["decoder"] == gone  # what `claim` compares is as it was given
    kept = (run / "decoder" / "config.json").read_bytes()
    convert([str(run)], tmp_path / "grown", vocab_size=recipe.llama.vocab_size + 8)
    other = config | {"model": config["model"] | {"decoder": str(tmp_path / "grown")}}
    keep_decoder(resolve(other), run)
    assert (run / "decoder" / "config.json").read_bytes() == kept
    (tmp_path / "decoder").mkdir()
    shutil.copyfile(run / "decoder" / "config.json", tmp_path / "decoder" / "config.json")
    assert with_kept_decoder(config, tmp_path) == config  # no checkpoint depends on it


def test_a_grown_export_is_taken_again(run, tmp_path):
    size = json.loads((run / "config.json").read_text())["tokenizer"]["vocab_size"] + 8
    convert([str(run)], tmp_path / "grown", vocab_size=size)
    convert([str(tmp_path / "grown")], tmp_path / "theirs", form="transformers")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert values["vocab_size"] == size
    assert describe_model(tmp_path / "grown").recipe.llama.vocab_size == size


def test_matrices_in_the_dtype_of_the_computation_change_nothing(run):
    opened = open_model(run)
    saved = opened.model.merge(*_saved(run))
    batch = jnp.arange(12).reshape(2, 6)

    @jax.jit
    def hidden(module):
        x = module.embed(batch, jnp.full((2, 6), -1), None)
        return module.decoder(x, jnp.arange(6)[None].repeat(2, 0), jnp.zeros((2, 6), jnp.int32))[0]

    np.testing.assert_array_equal(hidden(opened.module), hidden(saved))
    frames = np.random.default_rng(0).integers(0, 255, (1, 6, 32, 32, 3), dtype=np.uint8)
    mask = np.ones((1, 6), bool)

    @jax.jit
    def visual(module):
        return module.encode(frames, mask, use_running=True)

    np.testing.assert_array_equal(visual(opened.module), visual(saved))


def _saved(run):
    from rvllm_jax.training.checkpoint import read_model

    return read_model(run)[:2]


def test_what_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(WeightsError, match="neither a working directory"):
        open_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        open_model(run, best="joint")
    convert([str(run)], tmp_path / "out")
    with pytest.raises(WeightsError, match="no best checkpoint of stage 'joint'"):
        open_model(tmp_path / "out", best="joint")
    description = json.loads((tmp_path / "out" / "model.json").read_text())
    del description["recipe"]
    (tmp_path / "out" / "model.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="not a whole video model"):
        open_model(tmp_path / "out")
    copied = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copied / "config.json").read_text())
    config["model"]["projector"] = "mlp2x_gelu"
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="its checkpoint is not of its config.json"):
        open_model(copied)
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer"):
        open_model(copied)
