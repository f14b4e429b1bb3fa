import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.config.schema import FROZEN, OptimizerSpec, Stage
from rvllm_jax.sharding.layouts import JitLayout, PmapLayout
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.training.holding import Holding
from rvllm_jax.training.stages import label_parameters, make_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")
OWN = {"adamw": OptimizerSpec("adamw", 0.1)}
VISUAL = Stage("visual", "video", 8, (("encoder/.*", "adamw"), (".*", FROZEN)), OWN)
JOINT = Stage("joint", "video", 8, (("projector/.*", FROZEN), (".*", "adamw")), OWN)
LAST = Stage("last", "video", 8, (("encoder/.*", "adamw"), (".*", FROZEN)), OWN)
LAYOUTS = {
    "fsdp=8": lambda: JitLayout(make_mesh(1, 8, 1)),
    "pmap": lambda: PmapLayout(jax.devices()),
}
UP, PROJECTOR, STEM = (
    *("decoder/layers/mlp/up/kernel", "projector/linear_1/kernel", "encoder/stem/conv/kernel"),
)


@pytest.fixture(scope="module")
def holding(tiny_model):
    """A layout's name -> Holding of three stages."""
    model = tiny_model(jnp.bfloat16, param_dtype=jnp.float32)
    return lambda layout: Holding(model, (VISUAL, JOINT, LAST), "bfloat16", LAYOUTS[layout]())


def test_a_parameter_keeps_its_bits_until_the_last_stage_that_trains_it(holding):
    kept = holding("pmap").kept_dtype
    assert [kept(UP, stage) for stage in range(3)] == ["float32", "float32", "bfloat16"]
    assert [kept(PROJECTOR, stage) for stage in range(3)] == ["bfloat16"] * 3
    assert [kept(STEM, stage) for stage in range(3)] == ["float32"] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_every_stage_is_what_a_restart_asks_for(holding, layout):
    held = holding(layout)
    arrays = held.draw(jax.random.key(0))
    assert {p: x.dtype for p, x in arrays["params"].items()} == {
        path: held.kept_dtype(path, 0) for path in held.model.params
    }
    key, up = arrays["key"], np.array(arrays["params"][UP])
    for number, stage in enumerate((VISUAL, JOINT, LAST)):
        labels = label_parameters(stage, held.model.params)
        tx = make_optimizer(stage, labels, steps=10)
        like = held.like(number, labels, tx)
        arrays["opt"] = None
        placed = held.place(arrays, number, labels, tx)
        assert "params" not in arrays
        arrays = held.saved(placed, key)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (like, arrays))
        assert shapes[0] == shapes[1]
        assert set(placed.waiting) == (
            {path for path in labels if path.startswith("decoder/")} if stage is VISUAL else set()
        )
        for want, got in zip(
            *map(jax.tree.leaves, (like["params"], arrays["params"])), strict=True
        ):
            assert isinstance(got, np.ndarray) or got.sharding.is_equivalent_to(
                want.sharding, got.ndim
            )
        expected = up if stage is not LAST else up.astype(jnp.bfloat16)
        np.testing.assert_array_equal(arrays["params"][UP], expected)


def test_pmap_lays_one_copy_on_each_device(holding):
    held = holding("pmap")
    labels = label_parameters(JOINT, held.model.params)
    tx = make_optimizer(JOINT, labels, steps=10)
    state = held.place(held.draw(jax.random.key(0)), 1, labels, tx).state
    for x in jax.tree.leaves(state):
        assert [shard.data.shape[0] for shard in x.addressable_shards] == [1] * 8
        assert {shard.device for shard in x.addressable_shards} == set(jax.devices())
    for x in jax.tree.leaves(held.layout.gather(state)):
        assert x.devices() == {jax.devices()[0]}
