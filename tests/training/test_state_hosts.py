"""Arrays that wait in host memory; over several hosts by tests/training/test_several_hosts.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.training.state import HostShards, to_devices, to_host


def test_what_one_host_has_whole_waits_as_a_copy():
    x = jnp.arange(6.0)
    waiting = to_host(x)
    assert isinstance(waiting, np.ndarray) and waiting.flags.owndata
    assert to_devices(waiting) is waiting
    np.testing.assert_array_equal(waiting, x)


@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P(None, "fsdp"), P()])
def test_a_hosts_part_comes_back_to_where_it_lay(spec):
    place = NamedSharding(make_mesh(2, 2, 2), spec)
    x = jax.device_put(np.arange(32.0).reshape(4, 8), place)

    class OfAll:  # as an array of several hosts says of itself
        is_fully_addressable, shape, sharding = False, x.shape, x.sharding
        addressable_shards = x.addressable_shards

    waiting = to_host(OfAll)
    assert isinstance(waiting, HostShards)
    assert sum(shard.size for shard in waiting.shards.values()) == x.size  # copies are kept once
    back = to_devices(waiting)
    assert back.sharding == place
    np.testing.assert_array_equal(back, x)
