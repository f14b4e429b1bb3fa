import pytest

from rvllm_jax.costs import chips as topologies
from rvllm_jax.costs.chips import CHIPS, TopologyError, of_device, parse


@pytest.mark.parametrize(
    "name, chips, hosts",
    [("v5e:8x8", 64, 8), ("v5p:4x4x4", 64, 16), ("h200:1", 1, 1), ("H100:8", 8, 1)],
)
def test_a_name_is_chips_and_hosts(name, chips, hosts):
    topology = parse(name)
    assert (topology.chips, topology.hosts) == (chips, hosts)
    assert topology.is_tpu == name.startswith("v") and topology.name == name.lower()


@pytest.mark.parametrize(
    "name, said",
    [
        ("v9:2x2", ["no chip 'v9'", "v5e:1x1|2x2", "h200:N"]),
        ("v5e", ["2x4, 4x4", "such as v5e:4x8", "no shape"]),
        ("v5e:8x9", ["'8x9' is not one of them"]),
        ("v5e:4x4x4", ["'4x4x4' is not one of them"]),
        ("h100:9", ["multiple of 8", "h100:9"]),
        ("h100:0", ["1 to 8"]),
        ("h100:-1", ["1 to 8"]),
        ("h100:two", ["1 to 8"]),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(name, said):
    with pytest.raises(TopologyError) as caught:
        parse(name)
    assert all(each in str(caught.value) for each in said), str(caught.value)


def test_machines_beyond_one_are_as_fast_as_their_network():
    assert parse("h100:8").link == CHIPS["h100"].link > parse("h100:16").link
    assert parse("v5e:2x2").link == parse("v5e:16x16").link


def test_units_are_those_of_the_fields():
    for chip in CHIPS.values():
        assert 10e9 < chip.usable < chip.memory < 200e9
        assert 1e14 < chip.flops < 1e16 and 5e11 < chip.bandwidth < 1e13
        assert 1e11 < chip.link < chip.bandwidth and chip.source
    assert topologies.NETWORK < min(chip.link for chip in CHIPS.values())


@pytest.mark.parametrize(
    "kind, chip",
    [
        ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"),
        ("TPU v4", "v4"), ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)  # fmt: skip
def test_a_device_is_known_by_the_name_that_jax_gives_it(kind, chip):
    assert of_device(kind) is CHIPS[chip]


def test_of_other_devices_no_peak_is_claimed():
    assert of_device("cpu") is None and of_device("NVIDIA GeForce RTX 4090") is None
