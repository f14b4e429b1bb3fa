"""The kernels for GPUs and TPUs: which is taken where, and that they compute what XLA computes.

Splash runs interpreted here. What cuDNN is asked for is seen in the program for a GPU.
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.models import attention
from rvllm_jax.models.attention import TokenPositions, attend, make_mask, products
from rvllm_jax.sharding import constrain, rules
from rvllm_jax.types import PADDING, PREFIX

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def packed(B: int, T: int, S: int) -> jax.Array:
    """The mask of rows that end a cache of S tokens: a prefix, two questions, padding."""
    ends = np.arange(S)[None] - np.arange(B)[:, None] * 7
    bounds = [(S // 2, PREFIX), (2 * S // 3, 1), (S - 20, 2)]
    segments = np.full((B, S), PADDING)
    for end, segment in reversed(bounds):
        segments[ends < end] = segment
    whole = TokenPositions(
        jnp.broadcast_to(jnp.arange(S), (B, S)), jnp.asarray(segments, jnp.int32)
    )
    return make_mask(TokenPositions(whole.index[:, S - T :], whole.segment[:, S - T :]), whole)


def drawn(B, T, S, N, K, H, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def gradients(function):
    """-> (output, gradients) of a function of it that no number of it leaves as it is."""

    def loss(q, k, v, mask):
        out = function(q, k, v, mask)
        return (out.astype(jnp.float32) ** 2).sum(), out

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def assert_near(ours, theirs, tolerance):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        x, y = (np.asarray(z, np.float64) for z in (x, y))
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y)


@pytest.mark.parametrize(
    ("T", "S", "N", "K", "dtype", "tolerance"),
    [
        (256, 256, 4, 2, jnp.float32, 1e-6),  # measured: 4e-7
        (128, 384, 2, 1, jnp.float32, 1e-6),
        (128, 128, 2, 2, jnp.bfloat16, 1e-2),  # measured: 5e-3
    ],
)
def test_splash_gives_what_the_products_give(T, S, N, K, dtype, tolerance):
    given = (*drawn(2, T, S, N, K, 64, dtype), packed(2, T, S))
    assert_near(gradients(attention.splash)(*given), gradients(products)(*given), tolerance)


def test_on_a_mesh_each_device_takes_its_rows_and_heads():
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    heads = NamedSharding(mesh, P(rules.BATCH_AXES, None, "tensor"))
    q, k, v = drawn(4, 128, 128, 4, 2, 64)
    mask = packed(4, 128, 128)
    expected = products(q, k, v, mask)

    @jax.jit
    def over(q, k, v, mask):
        with constrain.use_mesh(mesh):
            return attention.splash(q, k, v, mask)

    split = (jax.device_put(x, heads) for x in (q, k, v))
    program = over.lower(*split, mask).compile()
    assert not re.findall(r"all-gather|all-to-all|all-reduce", program.as_text())
    out = over(*(jax.device_put(x, heads) for x in (q, k, v)), mask)
    assert out.sharding.is_equivalent_to(heads, 4)
    assert_near(out, expected, 1e-6)


LLAMA = dict(B=4, T=2048, S=2048, N=32, K=32, H=128)


@pytest.mark.parametrize(
    ("platform", "changes", "kernel"),
    [
        ("cpu", {}, None),
        ("tpu", {}, attention.splash),
        ("tpu", {"T": 128, "S": 1152}, attention.splash),
        ("tpu", {"T": 1, "S": 1152}, None),
        ("tpu", {"T": 144, "S": 144}, None),
        ("tpu", {"H": 80}, None),
        ("tpu", {"dtype": jnp.float64}, None),
        ("gpu", {}, attention.cudnn),
        ("gpu", {"T": 144, "S": 144, "H": 80}, attention.cudnn),
        ("gpu", {"T": 1}, None),
        ("gpu", {"H": 256}, None),
        ("gpu", {"dtype": jnp.float32}, None),
    ],
)
def test_a_kernel_is_taken_where_it_runs(platform, changes, kernel, monkeypatch):
    monkeypatch.setattr(constrain, "platform", lambda: platform)
    monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
    sizes = LLAMA | changes
    dtype = sizes.pop("dtype", jnp.bfloat16)
    B, T, S, N, K, H = sizes.values()
    with jax.enable_x64(dtype == jnp.float64):
        shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
        q, k, v = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
        assert attention.choose(q, k, v) is kernel
        cache = jax.ShapeDtypeStruct(k.shape, jnp.float16)
        assert attention.choose(q, cache, cache) is None  # of another dtype


@pytest.mark.parametrize("changes", [{"B": 3}, {"N": 6, "K": 3}])
def test_what_does_not_divide_over_the_mesh_is_left_to_xla(changes, monkeypatch):
    monkeypatch.setattr(constrain, "platform", lambda: "tpu")
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    for own, kernel in ((LLAMA, attention.splash), (LLAMA | changes, None)):
        B, T, S, N, K, H = own.values()
        q, k = (jax.ShapeDtypeStruct((B, T, n, H), jnp.bfloat16) for n in (N, K))
        with constrain.use_mesh(mesh):
            assert attention.choose(q, k, k) is kernel
        assert attention.choose(q, k, k) is attention.splash  # of one device all do


def test_without_cudnn_attention_is_xlas_and_that_is_told(monkeypatch, caplog):
    monkeypatch.setattr(constrain, "platform", lambda: "gpu")
    attention._has_cudnn.cache_clear()
    q, k, v = drawn(1, 128, 128, 2, 2, 64, jnp.bfloat16)
    mask = packed(1, 128, 128)
    assert_near(attend(q, k, v, mask), products(q, k, v, mask), 0)
    assert "attention by XLA" in caplog.text and "cuDNN" in caplog.text
    attention._has_cudnn.cache_clear()


def test_what_cudnn_is_asked_for_is_what_the_products_give(monkeypatch):
    """No GPU: what JAX would ask of cuDNN it computes itself."""
    asked = jax.nn.dot_product_attention

    def by_xla(*arrays, implementation, **kinds):
        assert implementation == "cudnn"
        return asked(*arrays, implementation="xla", **kinds)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    given = (*drawn(2, 48, 144, 4, 2, 64), packed(2, 48, 144))
    assert_near(gradients(attention.cudnn)(*given), gradients(products)(*given), 1e-6)


def test_the_program_for_a_gpu_calls_cudnn_forward_and_backward(monkeypatch):
    """No GPU: what JAX asks of the machine is answered here."""
    monkeypatch.setattr(constrain, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    attention._has_cudnn.cache_clear()
    given = (*drawn(2, 144, 144, 4, 2, 64, jnp.bfloat16), packed(2, 144, 144))
    program = gradients(attend).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    attention._has_cudnn.cache_clear()
    calls = re.findall(r"__cudnn\$(\w+)", program)
    assert {*calls} == {"fmhaScaleBiasSoftmax", "fmhaScaleBiasSoftmaxBackward"}
    assert "144x144xf32" not in program  # the scores are never held


@pytest.mark.skipif(not HAS_LIBTPU, reason="this Python has no libtpu")
@pytest.mark.parametrize(("heads", "size"), [((32, 32), 128), ((8, 4), 64)])
def test_the_program_for_a_tpu_holds_no_scores(heads, size):
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = Mesh(np.asarray(devices[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    one = NamedSharding(mesh, P())
    q, k = (jax.ShapeDtypeStruct((2, 2048, n, size), jnp.bfloat16, sharding=one) for n in heads)
    mask = jax.ShapeDtypeStruct((2, 2048, 2048), jnp.bool_, sharding=one)

    def attended(*given):
        with constrain.use_mesh(mesh):
            return attend(*given)

    temporary = {
        way: gradients(way).lower(q, k, k, mask).compile().memory_analysis().temp_size_in_bytes
        for way in (attended, products)
    }
    scores = 2 * heads[0] * 2048 * 2048 * 4
    assert 4 * temporary[attended] < scores <= temporary[products]
