"""The text of real programs, whose communication is known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from rvllm_jax.planning import hlo
from rvllm_jax.sharding.mesh import make_mesh


@pytest.fixture(scope="module")
def found():
    """Of a program that gathers [2, 16] once and, in each of three turns, sums [4] over two."""
    mesh = make_mesh(2, 4, 1)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(), check_vma=False
    )
    def program(x):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)

        def turn(carry, _):
            return jax.lax.psum(carry * 0.5, "data"), None

        carry, _ = jax.lax.scan(turn, whole[0, :4], length=3)
        return jax.lax.psum(jnp.sum(whole[1]) + carry, ("data", "fsdp"))

    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    return hlo.collectives(jax.jit(program).lower(x).compile().as_text(), 8)


def test_a_gather_counts_what_the_others_send(found):
    (gather,) = [each for each in found if each.kind == "all-gather"]
    assert (gather.shape, gather.dtype, gather.devices, gather.times) == ((4, 16), "f32", 4, 1)
    assert gather.received == 4 * 16 * 4 * 3 / 4


def test_what_a_loop_sends_counts_as_often_as_it_runs(found):
    sums = [each for each in found if each.kind == "all-reduce" and each.devices == 2]
    assert sum(each.times for each in sums) == 3
    assert sum(each.received for each in sums) == 3 * 2 * (4 * 4) / 2


def test_kinds_add_up(found):
    total = hlo.received(found)
    assert set(total) == {"all-gather", "all-reduce"}
    assert sum(total.values()) == sum(each.received for each in found)


def test_a_program_of_one_device_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert hlo.collectives(text, 1) == []


def test_asynchronous_and_fused_collectives_as_the_tpu_compiler_writes_them():
    text = """HloModule step

%fused (p.1: bf16[8,128]) -> bf16[512,128] {
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %g.1 = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[512,128]{1,0:T(8,128)(2,1)}) all-gather-start(%p.1), channel_id=7, replica_groups=[1,64]<=[64], dimensions={0}
  ROOT %g.2 = bf16[512,128]{1,0:T(8,128)(2,1)} all-gather-done(%g.1)
}

%fused.2 (p.2: bf16[8,128]) -> bf16[512,128] {
  %p.2 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g.3 = bf16[512,128]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, replica_groups=[1,64]<=[64], dimensions={0}
}

ENTRY %main (a: bf16[8,128]) -> bf16[512,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %v = bf16[512,128]{1,0} fusion(%a), kind=kCustom, calls=%fused
  ROOT %w = bf16[512,128]{1,0} fusion(%a), kind=kCustom, calls=%fused.2
}
"""  # noqa: E501
    (gather,) = hlo.collectives(text, 64)
    assert gather.shape == (512, 128) and gather.devices == 64
    assert gather.received == 512 * 128 * 2 * 63 / 64


def test_loops_without_a_count_run_to_the_bound_of_their_condition():
    text = """HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%cond (p.1: (s32[], bf16[8,4])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(32)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %constant.9), direction=LT
}

%body (p.2: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %x = bf16[8,4]{1,0} get-tuple-element(%p.2), index=1
  %r = (bf16[8,4]{1,0}, bf16[4]{0}) all-reduce(%x, %y), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%sum
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %r)
}

ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {
  ROOT %while.1 = (s32[], bf16[8,4]) while(%tuple), condition=%cond, body=%body
}
"""  # noqa: E501
    (reduce,) = hlo.collectives(text, 8)
    assert (reduce.devices, reduce.times, reduce.shape) == (4, 32, (8, 4))
    assert reduce.received == 32 * 2 * (64 + 8) * 3 / 4


def test_what_the_tpu_compiler_sums_and_splits_at_once_is_a_reduce_scatter():
    text = """HloModule step

%all-reduce-scatter.4.clone.1 (input: bf16[512,128]) -> bf16[8,128] {
  %input = bf16[512,128]{1,0} parameter(0)
  %sum = bf16[512,128]{1,0} all-reduce(%input), channel_id=5, replica_groups=[1,64]<=[64], to_apply=%add
  %n = u32[] partition-id()
  ROOT %part = bf16[8,128]{1,0} dynamic-slice(%sum, %n), dynamic_slice_sizes={8,128}
}

ENTRY %main (a: bf16[512,128]) -> bf16[8,128] {
  %a = bf16[512,128]{1,0} parameter(0)
  ROOT %v = bf16[8,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.4.clone.1
}
"""  # noqa: E501
    (found,) = hlo.collectives(text, 64)
    assert found.kind == "reduce-scatter" and found.received == 512 * 128 * 2 * 63 / 64


def test_a_kernel_of_several_lines_does_not_end_its_computation():
    text = """HloModule step

ENTRY %main (a: bf16[8,128]) -> bf16[512,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %k = bf16[8,128]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="splash"}
  ROOT %g = bf16[512,128]{1,0} all-gather(%k), replica_groups=[1,64]<=[64], dimensions={0}
}
"""  # noqa: E501
    (gather,) = hlo.collectives(text, 64)
    assert gather.shape == (512, 128)
