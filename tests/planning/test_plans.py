import pytest

from rvllm_jax.planning.plans import make_all


def test_a_plan_for_no_chips_is_refused(recipe):
    with pytest.raises(ValueError, match="--topology= names no chips; known are v5e:1x1"):
        make_all(recipe(), {}, [])
