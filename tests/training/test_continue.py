"""Runs through the trainer on eight devices: stopped and continued, with what it was made of."""

import gc
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.sharding.rules import param_sharding
from rvllm_jax.training import metrics
from rvllm_jax.training.loop import Trainer
from rvllm_jax.training.sigterm import INTERRUPTED
from rvllm_jax.training.stages import StageError
from rvllm_jax.training.state import StatePlacement
from rvllm_jax.training.workdir import WorkdirError

pytestmark = pytest.mark.usefixtures("quick_compilation")
MESHES = {
    "jit": {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "stages__visual__batch": 8},
    "pmap": {"parallel": "pmap"},
}
# What the continued run has instead: a checkpoint goes on over any mesh, and from pmap to jit.
ANOTHER = {
    "jit": {"mesh__data": 1, "mesh__fsdp": 8, "mesh__tensor": 1},
    "pmap": {"parallel": "jit"},
}
OTHER_KEY = jax.random.key(99)  # not that of the seed
BFLOAT = "bfloat16"


@pytest.fixture(scope="module")
def losses():
    """Those of the runs so far, by layout."""
    return {}


@pytest.fixture(scope="module")
def open_trainer(tiny_model):
    """Trainers of a model smaller than any that a recipe names.

    (recipe, workdir, probe, the tokenizer's fingerprint) -> Trainer.
    """
    llama = LlamaConfig(300, 16, 2, 4, 2, 8, 24, context=96)

    def open_trainer(recipe, workdir, probe=None, tokenizer="") -> Trainer:
        experiment = Experiment.open(recipe, workdir)
        splits = experiment.source.splits
        inputs = {stage.input for stage in recipe.stages}
        train, held = (
            {input: experiment.dataset(splits[split], input) for input in inputs}
            for split in ("train", "validation")
        )
        tokenizer = tokenizer or experiment.tokenizer.fingerprint
        dtype = jnp.dtype(recipe.model.dtype)
        model = tiny_model(dtype, llama, recipe.layout, jnp.float32)
        return Trainer(recipe, workdir, model, train, held, probe, tokenizer=tokenizer)

    return open_trainer


@pytest.fixture(scope="module")
def taken_over():
    """The parameters that each stage starts from, as they come: (sharding, values) by path."""
    seen, place = [], StatePlacement.place

    def record(self, arrays, *rest):
        params = arrays["params"].items()
        seen.append({path: (getattr(x, "sharding", None), np.array(x)) for path, x in params})
        return place(self, arrays, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StatePlacement, "place", record)
        yield seen


def saved(workdir, step: int) -> dict:
    return ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "arrays")


@pytest.fixture(scope="module", params=MESHES)
def continued(request, tmp_path_factory, recipe, open_trainer, taken_over, quick_compilation):
    """A run of 3 updates that was stopped after the second, on each layout of eight devices."""
    workdir = tmp_path_factory.mktemp(request.param)
    kinds = {**MESHES[request.param], "stages__visual__steps": 3, "checkpoint__every": 100}
    three, again = recipe(**kinds), recipe(**kinds | ANOTHER[request.param])

    def stop(*_):
        first.interrupt.requested = True
        return {}

    first = open_trainer(three, workdir, stop)
    draw = first.placement.draw
    first.placement.draw = lambda *at: draw(*at) | {"key": jax.random.key_data(OTHER_KEY)}
    taken_over.clear()
    with pytest.raises(SystemExit) as ended:
        first.run()
    assert ended.value.code == INTERRUPTED
    second = open_trainer(again, workdir)
    result = second.run()
    return SimpleNamespace(
        **dict(layout=request.param, workdir=workdir, recipe=three, trainers=(first, second)),
        **dict(result=result, taken_over=list(taken_over)),
    )


def test_parameters_are_spread_from_the_first_moment_also_when_continued(continued):
    assert len(continued.taken_over) == 2  # drawn, and restored
    for trainer, params in zip(continued.trainers, continued.taken_over, strict=True):
        for path, (sharding, x) in params.items():
            if continued.layout == "jit":
                mesh = trainer.layout.mesh
                assert sharding == param_sharding(mesh, path, x.shape), path
    if continued.layout == "jit":
        path = "decoder/layers/mlp/up/kernel"
        up = continued.result.params[path]
        assert {8 * shard.data.size for shard in up.addressable_shards} == {up.size}


def test_a_stopped_run_goes_on_and_every_layout_makes_the_same_updates(continued, losses):
    assert continued.result.position.done == 3
    records = metrics.read(continued.workdir / "metrics.jsonl")
    losses[continued.layout] = [r["loss"] for r in records]  # of 3 updates and 2 validations
    distinct = {round(loss, 4) for loss in losses[continued.layout]}
    assert len(distinct) == 4  # the first update's learning rate is zero
    for other in losses.values():
        np.testing.assert_allclose(other, losses[continued.layout], rtol=1e-5)


def test_the_random_state_is_that_of_the_checkpoint(continued):
    key = np.asarray(saved(continued.workdir, 3)["key"])
    np.testing.assert_array_equal(key, jax.random.key_data(OTHER_KEY))


def test_a_warm_up_longer_than_its_epochs_is_refused(recipe, tmp_path, open_trainer):
    """Six videos are one batch of eight rows, an epoch one update."""
    epochs = {"stages__visual__steps": 0, "stages__visual__epochs": 3}
    assert open_trainer(recipe(**epochs, stages__visual__warmup=2), tmp_path).setups[0].steps == 3
    with pytest.raises(StageError, match=r"visual\.warmup=3 .*3 updates .*epochs=3.*lower"):
        open_trainer(recipe(**epochs, stages__visual__warmup=3), tmp_path)


@pytest.mark.parametrize("moment", ["draw", "place"])
def test_a_signal_between_updates_ends_the_run_before_anything_is_compiled(
    recipe, tmp_path, open_trainer, moment
):
    trainer = open_trainer(recipe(**MESHES["jit"]), tmp_path)
    method = getattr(trainer.placement, moment)

    def signalled(*args):
        trainer.interrupt.requested = True
        return method(*args)

    setattr(trainer.placement, moment, signalled)
    started = []
    trainer._compile = lambda *_: started.append("compilation")
    if moment == "draw":
        trainer._run_stage = lambda *_: started.append("stage")
    with pytest.raises(SystemExit) as ended:
        trainer.run()
    assert ended.value.code == INTERRUPTED and not started


@pytest.mark.parametrize("continued", ["jit"], indirect=True)
def test_other_pairs_or_another_tokenizer_are_refused(
    continued, workplace, recipe, open_trainer, tmp_path
):
    records = json.loads((workplace / "train.json").read_text())
    records[0]["conversations"][1]["value"] = "purple"
    (tmp_path / "edited.json").write_text(json.dumps(records))
    edited = {"data__conversations": str(tmp_path / "edited.json")}
    other = recipe(**MESHES["jit"], **edited, stages__visual__steps=3)
    with pytest.raises(WorkdirError, match="made of other data.*Put annotations, videos") as error:
        open_trainer(other, continued.workdir).run()
    pairs = "training pairs of input video: 6 conversations in 6 rows"
    assert pairs in str(error.value) and "tokenizer:" not in str(error.value)
    with pytest.raises(WorkdirError, match="tokenizer: .* there, another now"):
        open_trainer(continued.recipe, continued.workdir, tokenizer="another").run()


def test_frozen_parameters_cost_their_compute_dtype_and_lose_no_bit(
    recipe, tmp_path, open_trainer, taken_over
):
    changes = {"stages__visual__steps": 1, "stages__joint__steps": 1}
    changes |= {"stages__visual__warmup": 0, "stages__joint__warmup": 0}
    two = recipe(**changes, schedule="visual,joint", stages__joint__batch=8, model__dtype=BFLOAT)
    taken_over.clear()
    others = jax.live_arrays()  # of other tests; held, so that no id is given twice
    alive = set()

    def look(*_):
        gc.collect()
        own = {id(x): x for x in jax.live_arrays()}
        for other in others:
            own.pop(id(other), None)
        alive.update((str(x.dtype), x.shape) for x in own.values())
        return {}

    trainer = open_trainer(two, tmp_path, look)
    updates = trainer._updates

    def only_visual(setup, arrays, position):  # compiling the other takes long
        return updates(setup, arrays, position) if setup.stage.name == "visual" else arrays

    trainer._updates = only_visual
    result = trainer.run()
    drawn, after = taken_over
    shapes = {p: x.shape for p, x in trainer.model.params.items()}
    encoder = {shape for path, shape in shapes.items() if not path.startswith("decoder/")}
    decoder = {p: x for p, x in shapes.items() if p.startswith("decoder/") and x not in encoder}
    assert len(decoder) > 8
    for path, shape in decoder.items():  # frozen in the first stage, trained in the second
        assert ("float32", shape) not in alive and (BFLOAT, shape) in alive, path
        kept = np.asarray(saved(tmp_path, 1)["params/" + path])
        for x in (kept, after[path][1]):
            assert x.dtype == np.float32 and x.tobytes() == drawn[path][1].tobytes(), path
        assert np.any(kept != kept.astype(BFLOAT)) or "norm" in path
    assert {str(x.dtype) for x in result.params.values()} == {"float32"}
