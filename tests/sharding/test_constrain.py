import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.planning import hlo
from rvllm_jax.sharding import constrain, rules
from rvllm_jax.sharding.mesh import make_mesh


def compiled(function, x, where, mesh):
    """(result, where it lies, what devices send) of `function` traced over `mesh`."""

    def over(x):
        with constrain.use_mesh(mesh):
            return function(x)

    program = jax.jit(over, in_shardings=where).lower(x).compile()
    result = program(jax.device_put(x, where))
    return result, result.sharding, hlo.collectives(program.as_text(), mesh.size)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 4), (8, 1, 1)])
def test_frames_are_joined_over_all_axes_and_split_again(sizes):
    """Nothing crosses devices: each keeps of the frames those that it is to encode."""
    mesh = make_mesh(*sizes)
    x = np.arange(8 * 4 * 5, dtype=np.float32).reshape(8, 4, 5)
    rows = NamedSharding(mesh, P(rules.BATCH_AXES))
    joined, where, sent = compiled(constrain.join_frames, x, rows, mesh)
    assert joined.shape == (32, 5) and {tuple(r) for r in joined.tolist()} == {
        tuple(r) for r in x.reshape(32, 5).tolist()
    }
    assert where.shard_shape(joined.shape) == (4, 5) and not sent

    def both(x):
        return constrain.split_frames(constrain.join_frames(x) * 2, 8, 4)

    back, where, sent = compiled(both, x, rows, mesh)
    np.testing.assert_array_equal(back, x * 2)
    assert where.shard_shape(back.shape)[1] == 4 // sizes[2] and not sent


def test_frames_that_do_not_divide_stay_with_their_rows():
    mesh = make_mesh(2, 2, 2)
    x = np.arange(4 * 3, dtype=np.float32).reshape(4, 3, 1)
    joined, where, sent = compiled(
        constrain.join_frames, x, NamedSharding(mesh, P(rules.BATCH_AXES)), mesh
    )
    np.testing.assert_array_equal(joined, x.reshape(12, 1))
    assert where.shard_shape(joined.shape) == (3, 1) and not sent


def test_axes_that_do_not_divide_are_dropped():
    mesh = make_mesh(2, 2, 2)
    x = jnp.zeros((8, 3))
    _, where, _ = compiled(
        lambda x: constrain.constrain(x, rules.BATCH_AXES, "tensor"), x, NamedSharding(mesh, P()),
        mesh,
    )  # fmt: skip
    assert where.shard_shape(x.shape) == (2, 3)


def test_without_a_mesh_nothing_is_said():
    x = jnp.arange(12.0).reshape(4, 3)
    one = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    assert constrain.constrain(x, "data") is x
    with constrain.use_mesh(one):
        assert constrain.constrain(x, "data") is x
        assert constrain.constrain_params({"decoder/head/kernel": x})["decoder/head/kernel"] is x
        text = str(jax.make_jaxpr(constrain.join_frames)(x))
    assert "sharding_constraint" not in text


def test_the_mesh_is_forgotten_outside():
    with pytest.raises(RuntimeError), constrain.use_mesh(make_mesh(8, 1, 1)):
        raise RuntimeError
    x = jnp.zeros(8)
    assert constrain.constrain(x, "data") is x
