import pytest

from rvllm_jax.costs import chips
from rvllm_jax.planning.plan import make_plans


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"mesh__data": 3}, "--topology=v5e:2x2: config.mesh data=3 .* the 4 devices"),
        ({"stages__joint__batch": 6}, "v5e:2x2: .*joint.batch=6 .* multiple of 4.*--clips_a_dev"),
    ],
)
def test_what_does_not_divide_is_refused_by_topology_and_what_to_do(recipe, changes, said):
    chosen = [chips.parse("v5e:2x2")]
    with pytest.raises(ValueError, match=said):
        make_plans(recipe(**{"mesh__data": -1, "schedule": "joint"} | changes), {}, chosen)


def test_a_plan_for_no_chips_is_refused(recipe):
    with pytest.raises(ValueError, match="--topology= names no chips; known are v5e:1x1"):
        make_plans(recipe(), {}, [])
