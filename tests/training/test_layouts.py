"""One device, meshes and pmap give one update (float64), however unevenly the rows are filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.config.schema import FROZEN, OptimizerSpec, Stage
from rvllm_jax.models.lora import LoRA, is_adapter
from rvllm_jax.sharding.layouts import JitLayout, PmapLayout, make
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.training.stages import frozen_norms, label_parameters, make_optimizer
from rvllm_jax.training.state import TrainState, split
from rvllm_jax.training.step import make_step

PLAIN = OptimizerSpec("sgd", lr=1.0, momentum=0.0)  # parameters before - after = gradient
JOINT = Stage("joint", "video", 8, ((".*", "sgd"),), {"sgd": PLAIN}, schedule="constant")
LANGUAGE = Stage(
    "language",
    "caption_in_slot",
    8,
    (("decoder/.*", "adamw"), (".*", FROZEN)),
    {"adamw": OptimizerSpec("adamw", lr=0.01, decay=0.1)},
    clip=0.5,
)
ADAPTERS = Stage(
    "adapters",
    "video",
    8,
    (("encoder/.*", FROZEN), (".*", "sgd")),
    {"sgd": PLAIN},
    lora=LoRA(2, 3.0, "attention/(q|o)|mlp/.*"),
)
PARTLY = Stage("partly", "video", 8, (("encoder/stem/.*", FROZEN), (".*", "sgd")), {"sgd": PLAIN})
# Rows 2, 3 and 6 are empty: on 8 devices three, on 4 one, has padding only.
NUM_FRAMES = (3, 1, 0, 0, 2, 3, 0, 1)
LAYOUTS = {
    "data=8": lambda: JitLayout(make_mesh(8, 1, 1)),
    "fsdp=8": lambda: JitLayout(make_mesh(1, 8, 1)),
    "data=2 fsdp=2 tensor=2": lambda: JitLayout(make_mesh(2, 2, 2)),
    "pmap": lambda: PmapLayout(jax.devices()),
    "pmap over 4": lambda: PmapLayout(jax.devices()[:4]),
}
# Two rows a device at least, as two micro-batches need.
FOURFOLD = ("data=2 fsdp=2 tensor=2", "pmap over 4")


def one_device():
    return JitLayout(make_mesh(1, 1, 1, devices=jax.devices()[:1]))


@pytest.fixture(scope="module", autouse=True)
def float64(quick_compilation):
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def run(float64, tiny_model, tiny_arrays, tiny_batch):
    """(parallel, stage) -> parameters before, state and metrics after each of two steps."""
    models = {lora: tiny_model(jnp.float64, lora=lora) for lora in (None, ADAPTERS.lora)}

    def steps(parallel, stage, **kinds):
        model = models[stage.lora]
        arrays = jax.tree.map(np.asarray, tiny_arrays(model))
        params, stats = jax.tree.map(jnp.asarray, arrays)
        labels = label_parameters(stage, params)
        tx = make_optimizer(stage, labels, steps=10)
        trainable, frozen = split(params, labels)
        state = parallel.place(tx, TrainState(trainable, frozen, stats, tx.init(trainable)))
        video = stage.input == "video"
        batches = [
            parallel.put(tiny_batch(num_frames, with_frames=video, seed=seed))
            for seed, num_frames in enumerate([NUM_FRAMES, NUM_FRAMES[::-1]])
        ]
        running = frozen_norms(stage, labels)
        step = make_step(model, tx, running=running, axis_name=parallel.axis_name, **kinds)
        program = parallel.compile(step, tx, state, batches[0])
        after = []
        for batch in batches:
            state, metrics = program(state, batch)
            gathered = jax.tree.map(np.asarray, parallel.gather(state))
            after.append((gathered, parallel.scalars(metrics)))
        return arrays, after

    return steps


@pytest.fixture(scope="module")
def on_one_device(run):
    """What each stage does on one device, by its name and the number of micro-batches."""
    return {
        ("joint", 1): run(one_device(), JOINT),
        ("joint", 2): run(one_device(), JOINT, accumulate=2),
        ("language", 1): run(one_device(), LANGUAGE),
    }


@pytest.fixture(scope="module")
def adapters_on_one_device(run):
    return run(one_device(), ADAPTERS)


def assert_close(actual: dict, expected: dict):
    """Norm of the difference / norm under 1e-9, array by array."""
    assert actual.keys() == expected.keys()
    for path, x in expected.items():
        assert np.linalg.norm(actual[path] - x) <= 1e-9 * np.linalg.norm(x), path


def change(after: dict, before: dict) -> dict:
    return {path: x - before[path] for path, x in after.items()}


def assert_same_updates(actual, expected):
    (params, stats), after = expected
    for (state, metrics), (state_1, metrics_1) in zip(actual[1], after, strict=True):
        assert_close(metrics, metrics_1)
        assert_close(change(state.trainable, params), change(state_1.trainable, params))
        assert_close(change(state.stats, stats), change(state_1.stats, stats))
        assert_close(state.frozen, state_1.frozen)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15),
            state.opt,
            state_1.opt,
        )


def test_the_reference_moves_everything(on_one_device):
    for (name, _), ((params, stats), after) in on_one_device.items():
        for state, metrics in after:
            assert metrics["finite"] == 1 and metrics["tokens"] > 20
            assert all(np.any(x != params[path]) for path, x in state.trainable.items())
            moved = [np.any(x != stats[path]) for path, x in state.stats.items()]
            assert all(moved) if name == "joint" else not any(moved)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "pmap over 4"])
def test_layouts_agree(run, on_one_device, layout):
    assert_same_updates(run(LAYOUTS[layout](), JOINT), on_one_device["joint", 1])


@pytest.mark.parametrize("layout", FOURFOLD)
def test_micro_batches_agree(run, on_one_device, layout):
    actual = run(LAYOUTS[layout](), JOINT, accumulate=2)
    assert_same_updates(actual, on_one_device["joint", 2])


@pytest.mark.parametrize("layout", ["data=2 fsdp=2 tensor=2", "pmap"])
def test_text_in_the_videos_place_agrees(run, on_one_device, layout):
    assert_same_updates(run(LAYOUTS[layout](), LANGUAGE), on_one_device["language", 1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data=2 fsdp=2 tensor=2", "pmap"])
def test_adapters_of_a_frozen_decoder_agree(run, adapters_on_one_device, layout):
    (params, _), after = adapters_on_one_device
    state, _ = after[-1]
    assert all(np.any(x != params[path]) for path, x in state.trainable.items())
    assert {path.split("/")[0] for path in state.trainable} == {"projector", "decoder"}
    assert all(is_adapter(path) for path in state.trainable if path.startswith("decoder/"))
    assert_same_updates(run(LAYOUTS[layout](), ADAPTERS), adapters_on_one_device)


@pytest.mark.slow
def test_a_partly_frozen_encoder_agrees(run):
    one = run(one_device(), PARTLY)
    (_, stats), after = one
    kept = {path for path, x in stats.items() if np.array_equal(after[-1][0].stats[path], x)}
    assert kept == {path for path in stats if path.startswith("encoder/stem")}
    for layout in ("data=2 fsdp=2 tensor=2", "pmap"):
        assert_same_updates(run(LAYOUTS[layout](), PARTLY), one)


def test_parameters_are_spread_by_fsdp_and_copied_by_pmap(tiny_model, tiny_arrays):
    model = tiny_model()
    labels = label_parameters(JOINT, model.params)
    tx = make_optimizer(JOINT, labels, steps=10)
    params, stats = tiny_arrays(model)
    state = TrainState(params, {}, stats, tx.init(params))
    path = "decoder/layers/mlp/up/kernel"
    spread = LAYOUTS["fsdp=8"]().place(tx, state).trainable[path]
    assert {x.data.size * 8 for x in spread.addressable_shards} == {params[path].size}
    copied = LAYOUTS["pmap"]().place(tx, state)
    assert copied.trainable[path].shape == (8, *params[path].shape)


def test_make():
    assert isinstance(make("pmap", {}), PmapLayout) and make("pmap", {}).batch_shards == 8
    parallel = make("jit", {"data": 2, "fsdp": -1, "tensor": 2})
    assert isinstance(parallel, JitLayout) and parallel.batch_shards == 4


def test_pmap_is_refused_on_several_hosts(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="is for one host, here are 2; set config.parallel='jit'"):
        make("pmap", {})
