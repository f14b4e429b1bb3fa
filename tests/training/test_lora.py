"""A stage of adapters: what it trains, what its checkpoints hold, and that it goes on."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.lora import LoRA, is_adapter
from rvllm_jax.training.checkpoint import read_model
from rvllm_jax.training.checkpoint_folder import CheckpointError
from rvllm_jax.training.loop import Trainer
from rvllm_jax.training.sigterm import INTERRUPTED
from rvllm_jax.training.workdir import WorkdirError, claim

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.slow]  # trains for a minute
LLAMA = LlamaConfig(300, 16, 2, 4, 2, 8, 24, context=96)
STEPS = 3
KEYS = {
    **{"schedule": "joint", "stages__joint__batch": 8, "stages__joint__steps": STEPS},
    **{"stages__joint__warmup": 0, "stages__joint__lora__rank": 2, "model__dtype": "bfloat16"},
    **{"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "checkpoint__every": 100},
}


@pytest.fixture(scope="module")
def open_trainer(tiny_model):
    """(recipe, workdir, probe) -> Trainer of a model smaller than any that a recipe names.

    Trainers of one rank share what is compiled.
    """
    made, compiled = {}, {}

    def open_trainer(recipe, workdir, probe=None) -> Trainer:
        experiment = Experiment.open(recipe, workdir)
        splits = experiment.source.splits
        sets = [{"video": experiment.dataset(splits[s])} for s in ("train", "validation")]
        model = made.get(recipe.lora)
        model = model or tiny_model(jnp.bfloat16, LLAMA, recipe.layout, jnp.float32, recipe.lora)
        trainer = Trainer(
            recipe, workdir, model, *sets, probe, tokenizer=experiment.tokenizer.fingerprint
        )
        if recipe.lora not in made:
            made[recipe.lora], compiled[recipe.lora] = model, (trainer.loss, {})
        trainer.loss, programs = compiled[recipe.lora]
        own = trainer._compile
        trainer._compile = lambda *at: programs.get(0) or programs.setdefault(0, own(*at))
        return trainer

    return open_trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory, recipe, open_trainer, quick_compilation):
    """The same run twice: as a whole, and stopped after its second update and continued."""
    own = recipe(**KEYS)
    whole, cut = (tmp_path_factory.mktemp(name) for name in ("whole", "cut"))
    trainer = open_trainer(own, whole)
    place, drawn = trainer.placement.place, {}

    def record(arrays, *rest):
        drawn.update({path: np.array(x) for path, x in arrays["params"].items()})
        placed = place(arrays, *rest)
        drawn["dtypes"] = {p: x.dtype for p, x in placed.state.frozen.items()}
        drawn["moments"] = sum(x.size for x in jax.tree.leaves(placed.state.opt) if x.ndim)
        drawn["trained"] = sum(x.size for x in placed.state.trainable.values())
        return placed

    trainer.placement.place = record
    result = trainer.run()

    def stop(*_):
        first.interrupt.requested = True
        return {}

    first = open_trainer(own, cut, stop)
    with pytest.raises(SystemExit) as ended:
        first.run()
    assert ended.value.code == INTERRUPTED
    return SimpleNamespace(
        **dict(recipe=own, whole=whole, cut=cut, drawn=drawn, result=result),
        continued=open_trainer(own, cut).run(),
    )


def saved(folder) -> dict:
    return ocp.PyTreeCheckpointer().restore(folder / "arrays")


def test_adapters_train_and_the_frozen_decoder_costs_its_compute_dtype(runs):
    trained = {p for p, x in runs.result.params.items() if np.any(x != runs.drawn[p])}
    decoder = {p for p in runs.result.params if p.startswith("decoder/")}
    assert {p for p in trained if p in decoder} == {p for p in decoder if is_adapter(p)}
    assert len(trained & decoder) == 4 and trained - decoder
    base = decoder - trained
    assert runs.drawn["dtypes"] == dict.fromkeys(base, jnp.bfloat16)
    # AdamW's two moments, of what trains and of nothing else.
    assert runs.drawn["moments"] == 2 * runs.drawn["trained"]


def test_the_frozen_decoder_is_saved_once_and_not_in_every_checkpoint(runs):
    base = {p for p in runs.result.params if p.startswith("decoder/") and not is_adapter(p)}
    rest = runs.result.params.keys() - base
    for workdir in (runs.whole, runs.cut):
        names = saved(workdir / "checkpoints" / str(STEPS)).keys()
        assert {n.partition("/")[2] for n in names if n.startswith("params/")} == rest
        best = next((workdir / "best" / "joint").glob("[0-9]*"))
        assert {n.partition("/")[2] for n in saved(best) if n.startswith("params/")} == rest
        frozen = saved(workdir / "frozen" / "0")
        assert {n.partition("/")[2] for n in frozen} == base
        assert {x.dtype.name for x in frozen.values()} == {"bfloat16"}


def test_a_stopped_run_ends_as_one_that_was_not(runs):
    for other in (runs.continued, SimpleNamespace(params=read_model(runs.cut)[0])):
        assert other.params.keys() == runs.result.params.keys()
        for path, x in runs.result.params.items():
            assert np.asarray(other.params[path]).tobytes() == np.asarray(x).tobytes(), path
    _, stats, step = read_model(runs.cut, "joint")
    assert step <= STEPS and stats.keys() == runs.result.stats.keys()


def test_another_rank_is_refused(runs, recipe, open_trainer, joint, tmp_path):
    config = joint()
    config.stages.joint.lora.rank = 2
    claim(tmp_path, config.to_dict())
    shutil.copytree(runs.cut / "checkpoints", tmp_path / "checkpoints")
    config.stages.joint.lora.rank = 3
    with pytest.raises(WorkdirError, match=r"stages\.joint\.lora\.rank: 2 there, 3 now"):
        claim(tmp_path, config.to_dict())
    other = recipe(**KEYS | {"stages__joint__lora__rank": 3})
    assert other.lora == LoRA(3, 16.0, "attention/(q|v)")
    with pytest.raises(
        CheckpointError, match=r"different: .*lora_a is float32\[2, 16, 2\], expect"
    ):
        open_trainer(other, runs.cut).run()


def test_without_what_was_saved_once_it_does_not_go_on(runs, open_trainer, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(runs.cut, workdir)
    shutil.rmtree(workdir / "frozen" / "0")
    with pytest.raises(CheckpointError, match=r"frozen: no checkpoint of step 0"):
        open_trainer(runs.recipe, workdir).run()


def test_what_a_start_of_another_configuration_left_is_cleared(runs, open_trainer, tmp_path):
    """It was killed before its first checkpoint, on which the folder would depend."""
    shutil.copytree(runs.cut / "frozen", tmp_path / "frozen")
    trainer = open_trainer(runs.recipe, tmp_path)
    trainer._restore()
    trainer.checkpoints.close()
    assert not list((tmp_path / "frozen").glob("[0-9]*"))
