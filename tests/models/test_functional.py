import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.models import functional
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.norms import BatchNorm
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import VisualLayout

KINDS = ("int8", "uint32", "bfloat16", "float16")


class Small(nnx.Module):
    def __init__(self, *, rngs):
        self.blocks = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)])
        self.norm = BatchNorm(4)

    def __call__(self, x_NhwC):
        for block in self.blocks:
            x_NhwC = block(x_NhwC)
        return self.norm(x_NhwC, jnp.ones(len(x_NhwC), bool), use_running=False)


SHAPES = {
    "blocks/0/kernel": (3, 4),
    "blocks/0/bias": (4,),
    "blocks/1/kernel": (4, 4),
    "blocks/1/bias": (4,),
    "norm/scale": (4,),
    "norm/bias": (4,),
}


@pytest.fixture(scope="module")
def model():
    return FunctionalModel.of(lambda rngs: Small(rngs=rngs))


def test_paths_shapes_and_dtypes(model):
    assert {path: x.shape for path, x in model.params.items()} == SHAPES
    assert {path: x.shape for path, x in model.stats.items()} == {
        "norm/mean": (4,),
        "norm/var": (4,),
    }
    assert all(x.dtype == jnp.float32 for x in {**model.params, **model.stats}.values())


def test_nothing_is_allocated():
    # The 13 billion parameters of Vicuna-13B, in float32, are 52 GB.
    llama = LlamaConfig(32000, 5120, 40, 40, 40, 128, 13824, 4096)
    layout = VisualLayout("global", frames=2)
    big = FunctionalModel.of(lambda rngs: VideoLLM(ResNetConfig(), llama, layout, rngs=rngs))
    assert sum(x.size for x in big.params.values()) > 13e9
    leaves = jax.tree.leaves((big.params, big.stats, big.param_state, big.stat_state))
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)


def test_init_is_the_modules_own(model):
    params, stats = model.init(jax.random.key(7))
    module = Small(rngs=nnx.Rngs(jax.random.key(7)))
    np.testing.assert_array_equal(params["blocks/1/kernel"], module.blocks[1].kernel[...])
    assert {path: x.shape for path, x in params.items()} == SHAPES
    np.testing.assert_array_equal(stats["norm/var"], np.ones(4))
    other, _ = model.init(jax.random.key(8))
    assert np.any(other["blocks/1/kernel"] != params["blocks/1/kernel"])


def test_merge_puts_every_array_in_its_place(model):
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(size=shape)) for path, shape in SHAPES.items()}
    stats = {"norm/mean": jnp.arange(4.0), "norm/var": jnp.arange(4.0) + 5}
    module = model.merge(params, stats)
    for index in (0, 1):
        block = module.blocks[index]
        np.testing.assert_array_equal(block.kernel[...], params[f"blocks/{index}/kernel"])
        np.testing.assert_array_equal(block.bias[...], params[f"blocks/{index}/bias"])
    np.testing.assert_array_equal(module.norm.scale[...], params["norm/scale"])
    np.testing.assert_array_equal(module.norm.var[...], stats["norm/var"])
    read = model.read_stats(module)
    jax.tree.map(np.testing.assert_array_equal, read, stats)


def test_statistics_after_a_forward_pass_under_jit(model):
    params, stats = model.init(jax.random.key(0))
    x_NhwC = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype(np.float32)

    @jax.jit
    def forward(params, stats):
        module = model.merge(params, stats)
        module(x_NhwC)
        return model.read_stats(module)

    features = x_NhwC
    for index in (0, 1):
        features = features @ params[f"blocks/{index}/kernel"] + params[f"blocks/{index}/bias"]
    after = forward(params, stats)
    assert after.keys() == stats.keys()
    np.testing.assert_allclose(after["norm/mean"], 0.1 * features.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(stats["norm/mean"], np.zeros(4))  # what came in is untouched
    assert model.read_stats(model.merge(params, after)).keys() == after.keys()


@pytest.mark.parametrize("missing", ["blocks/1/kernel", "norm/mean"])
def test_a_missing_array_fails_by_name(model, missing):
    arrays = model.init(jax.random.key(0))
    params, stats = ({p: x for p, x in part.items() if p != missing} for part in arrays)
    with pytest.raises(KeyError, match=missing):
        model.merge(params, stats)


def test_a_checksum_is_of_all_bits_and_places_wherever_it_is_summed_up(monkeypatch):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype(np.float32) for shape in ((), (3,), (2, 3, 5, 7))]
    arrays = {str(n): jnp.asarray(x) for n, x in enumerate(values)}
    arrays |= {kind: jnp.asarray(rng.integers(0, 99, (9, 33)), kind) for kind in KINDS}
    monkeypatch.setattr(functional, "_PART", 16)  # so that there are several
    on_host = functional.checksum(arrays)
    monkeypatch.setattr(functional, "_is_on_cpu", lambda x: False)
    assert functional.checksum(arrays) == on_host
    for path, x in arrays.items():
        assert functional.checksum(arrays | {path: x.at[(-1,) * x.ndim].add(1)}) != on_host
    swapped = arrays | {"int8": arrays["int8"][::-1]}
    assert functional.checksum(swapped) != on_host
    assert functional.checksum(
        {"a": jnp.asarray(values[1])}, {"a": "bfloat16"}
    ) == functional.checksum({"a": jnp.asarray(values[1], jnp.bfloat16)})
