import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.config.schema import FROZEN, OptimizerSpec, Stage
from rvllm_jax.sharding.layouts import JitLayout, PmapLayout
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.training.stages import prepare_stage
from rvllm_jax.training.state import StatePlacement

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
def make_placement(tiny_model):
    """A layout's name -> StatePlacement of three stages."""
    model = tiny_model(jnp.bfloat16, param_dtype=jnp.float32)
    return lambda layout: StatePlacement(
        model, (VISUAL, JOINT, LAST), "bfloat16", LAYOUTS[layout]()
    )


def test_a_parameter_keeps_its_bits_until_the_last_stage_that_trains_it(make_placement):
    kept = make_placement("pmap").kept_dtype
    assert [kept(UP, stage) for stage in range(3)] == ["float32", "float32", "bfloat16"]
    assert [kept(PROJECTOR, stage) for stage in range(3)] == ["bfloat16"] * 3
    assert [kept(STEM, stage) for stage in range(3)] == ["float32"] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_every_stage_is_what_a_restart_asks_for(make_placement, layout):
    placement = make_placement(layout)
    arrays = placement.draw(jax.random.key(0))
    assert {p: x.dtype for p, x in arrays["params"].items()} == {
        path: placement.kept_dtype(path, 0) for path in placement.model.params
    }
    key, up = arrays["key"], np.array(arrays["params"][UP])
    for number, stage in enumerate((VISUAL, JOINT, LAST)):
        setup = prepare_stage(stage, placement.model.params, 10)
        like = placement.shapes(number, setup)
        arrays["opt"] = None
        placed = placement.place(arrays, number, setup)
        assert "params" not in arrays
        arrays = placement.collect(placed, key)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (like, arrays))
        assert shapes[0] == shapes[1]
        assert set(placed.originals) == (
            {path for path in setup.labels if path.startswith("decoder/")}
            if stage is VISUAL
            else set()
        )
        for want, got in zip(
            *map(jax.tree.leaves, (like["params"], arrays["params"])), strict=True
        ):
            assert isinstance(got, np.ndarray) or got.sharding.is_equivalent_to(
                want.sharding, got.ndim
            )
        expected = up if stage is not LAST else up.astype(jnp.bfloat16)
        np.testing.assert_array_equal(arrays["params"][UP], expected)


def test_pmap_lays_one_copy_on_each_device(make_placement):
    placement = make_placement("pmap")
    setup = prepare_stage(JOINT, placement.model.params, 10)
    state = placement.place(placement.draw(jax.random.key(0)), 1, setup).state
    for x in jax.tree.leaves(state):
        assert [shard.data.shape[0] for shard in x.addressable_shards] == [1] * 8
        assert {shard.device for shard in x.addressable_shards} == set(jax.devices())
    for x in jax.tree.leaves(placement.layout.gather(state)):
        assert x.devices() == {jax.devices()[0]}
