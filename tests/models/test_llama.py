import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.models import kv_cache, llama
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import DECODERS, LlamaConfig, RopeScaling
from rvllm_jax.types import PADDING, PREFIX

CONFIG = LlamaConfig(50, 16, 2, 4, 2, 6, 24, context=32, tied=True)
# A prefix of 3 tokens, questions of 3 and 2 behind it, one token of padding.
SEGMENTS = np.array([[PREFIX] * 3 + [1] * 3 + [2] * 2 + [PADDING]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 4, 5, 3, 4, 0]], np.int32)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def decoder(config=CONFIG, **kinds) -> Llama:
    """A decoder of large random weights, so that every token matters to those that see it."""
    kinds = {"dtype": jnp.float64, "param_dtype": jnp.float64} | kinds
    graph, state = nnx.split(Llama(config, rngs=nnx.Rngs(0), **kinds))
    return nnx.merge(graph, jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, state))


def some_x(tokens: int, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(1, tokens, CONFIG.width)))


def test_packed_questions_are_as_if_alone():
    model, x = decoder(), some_x(9)
    packed, cache = model(x, POSITIONS, SEGMENTS)
    assert cache is None
    for number in (1, 2):
        places = np.flatnonzero((SEGMENTS[0] == PREFIX) | (SEGMENTS[0] == number))
        alone, _ = model(x[:, places], POSITIONS[:, places], SEGMENTS[:, places])
        np.testing.assert_allclose(packed[:, places], alone, rtol=1e-6)


def test_nobody_sees_later_tokens_or_another_question():
    """By gradient: d hidden[t] / d x[s] is zero exactly where t must not see s."""
    model = decoder()
    hidden = jax.jit(lambda x: model(x[None], POSITIONS, SEGMENTS)[0][0])
    jacobian_tDsD = jax.jacrev(hidden)(some_x(9)[0])
    seen_ts = np.abs(jacobian_tDsD).max((1, 3)) > 0
    prefix, first, second = [1, 1, 1], [0, 0, 0], [0, 0]
    expected = [
        [1, 0, 0, *first, *second, 0],
        [1, 1, 0, *first, *second, 0],
        [*prefix, *first, *second, 0],
        [*prefix, 1, 0, 0, *second, 0],
        [*prefix, 1, 1, 0, *second, 0],
        [*prefix, 1, 1, 1, *second, 0],
        [*prefix, *first, 1, 0, 0],
        [*prefix, *first, 1, 1, 0],
        [*prefix, *first, *second, 1],
    ]
    np.testing.assert_array_equal(seen_ts, np.array(expected, bool))


@pytest.mark.parametrize("apart", [False, True])
def test_cached_in_pieces_is_as_in_one_go(apart):
    """Read as prefix, question of two tokens and single tokens, with padding in between.

    apart: the question stands in a cache of its own behind the prefix.
    """
    model, x = decoder(), some_x(6)
    positions, segments = np.arange(6)[None], np.array([[PREFIX] * 3 + [1] * 3])
    whole, _ = model(x, positions, segments)
    cache = kv_cache.empty(CONFIG.layers, 1, 9, CONFIG.kv_heads, CONFIG.head_dim, jnp.float64)
    read = jax.jit(lambda x, p, s, cache: model(x, p, s, cache))
    junk = some_x(2, seed=1) * 100
    pieces = []
    for start, stop, padding in ((0, 3, 2), (3, 4, 1), (4, 5, 0), (5, 6, 0)):
        hidden, cache = read(
            jnp.concatenate([x[:, start:stop], junk[:, :padding]], 1),
            np.pad(positions[:, start:stop], ((0, 0), (0, padding))),
            np.pad(segments[:, start:stop], ((0, 0), (0, padding)), constant_values=PADDING),
            cache,
        )
        pieces.append(hidden[:, : stop - start])
        if apart and start == 0:
            cache = kv_cache.behind(cache, 1, 4)
    assert cache.length == (4 if apart else 9)
    np.testing.assert_allclose(
        model.logits(jnp.concatenate(pieces, 1)), model.logits(whole), rtol=1e-6
    )


def test_padding_rows_are_finite():
    model = decoder(dtype=jnp.float32, param_dtype=jnp.float32)
    graph, params = nnx.split(model)

    def total(params):
        model = nnx.merge(graph, params)
        nothing = jnp.full((2, 5), PADDING)
        x = model.embed(jnp.zeros((2, 5), jnp.int32))
        x = x.at[1].set(0.0)  # as visual tokens of a clip without frames can be
        return model(x, jnp.zeros((2, 5), jnp.int32), nothing)[0].sum()

    value, gradients = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def value_and_gradients(model):
    graph, params = nnx.split(model)
    # Random weights on the outputs: after the norm a plain sum of squares is nearly constant.
    weights, x = some_x(9, seed=2), some_x(9)

    @jax.jit
    def run(params):
        def loss(params):
            hidden, _ = nnx.merge(graph, params)(x, POSITIONS, SEGMENTS)
            return jnp.sum(hidden * weights)

        return jax.value_and_grad(loss)(params)

    return run, params


@pytest.mark.parametrize("unrolled", [0, 5])
def test_remat_changes_memory_and_nothing_else(unrolled, monkeypatch):
    monkeypatch.setattr(llama, "UNROLLED_LAYERS", unrolled)
    config = dataclasses.replace(CONFIG, layers=5)
    results, memory = {}, {}
    for remat in llama.REMAT_POLICIES:
        run, params = value_and_gradients(decoder(config, remat=remat))
        compiled = run.lower(params).compile()
        results[remat] = compiled(params)
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
    for remat in ("full", "dots"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            results["none"],
            results[remat],
        )
    assert memory["full"] < memory["dots"] < memory["none"]


def test_unrolled_layers_are_as_looped(monkeypatch):
    results = []
    for depth in (0, CONFIG.layers):
        monkeypatch.setattr(llama, "UNROLLED_LAYERS", depth)
        run, params = value_and_gradients(decoder())
        assert ("while" in run.lower(params).as_text()) == (depth == 0)
        results.append(run(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *results)


def test_parameter_names_and_shapes():
    config = dataclasses.replace(CONFIG, tied=False)
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
    shapes = {"/".join(path): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    assert shapes == {
        "embed/embedding": (50, 16),
        "layers/norm1/scale": (2, 16),
        "layers/attention/q/kernel": (2, 16, 24),
        "layers/attention/k/kernel": (2, 16, 12),
        "layers/attention/v/kernel": (2, 16, 12),
        "layers/attention/o/kernel": (2, 24, 16),
        "layers/norm2/scale": (2, 16),
        "layers/mlp/gate/kernel": (2, 16, 24),
        "layers/mlp/up/kernel": (2, 16, 24),
        "layers/mlp/down/kernel": (2, 24, 16),
        "norm/scale": (16,),
        "head/kernel": (16, 50),
    }


def test_layers_start_different():
    kernel = Llama(CONFIG, rngs=nnx.Rngs(0)).layers.attention.q.kernel[...]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    np.testing.assert_allclose(np.std(kernel), CONFIG.init_std, rtol=0.2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vicuna-7b", 6_738_415_616),
        ("vicuna-13b", 13_015_864_320),
        ("llama-3.2-1b", 1_235_814_400),
        ("tinyllama-1.1b", 1_100_048_384),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_named_decoders_have_the_published_number_of_parameters(name, parameters):
    state = nnx.state(nnx.eval_shape(lambda: Llama(DECODERS[name], rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters


def test_named_decoders_have_the_published_sizes():
    """What the number of parameters does not tell; from the config.json files (Vicuna v1.5)."""
    published = {  # rope_theta, norm_eps, context, heads, key/value heads, head_dim, tied
        "vicuna-7b": (10000, 1e-5, 4096, 32, 32, 128, False),
        "vicuna-13b": (10000, 1e-5, 4096, 40, 40, 128, False),
        "llama-3.2-1b": (500000, 1e-5, 131072, 32, 8, 64, True),
        "tinyllama-1.1b": (10000, 1e-5, 2048, 32, 4, 64, False),
        "smollm2-135m": (100000, 1e-5, 8192, 9, 3, 64, True),
    }
    keys = ("rope_theta", "norm_eps", "context", "heads", "kv_heads", "head_dim", "tied")
    ours = {name: tuple(getattr(c, key) for key in keys) for name, c in DECODERS.items()}
    assert published == {name: sizes for name, sizes in ours.items() if name in published}
    assert DECODERS.keys() - published.keys() == {"tiny", "small"}
    scaling = {name: c.rope_scaling for name, c in DECODERS.items() if c.rope_scaling}
    assert scaling == {"llama-3.2-1b": RopeScaling(32.0, 1.0, 4.0, 8192)}


def test_bfloat16_computes_in_bfloat16_and_gives_float32_logits():
    model = decoder(dtype=jnp.bfloat16)
    hidden, _ = model(some_x(9), POSITIONS, SEGMENTS)
    assert hidden.dtype == jnp.bfloat16
    assert model.logits(hidden).dtype == jnp.float32
    exact, _ = decoder()(some_x(9), POSITIONS, SEGMENTS)
    error = np.linalg.norm(hidden.astype(jnp.float64) - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.05


def test_the_gradients_of_logits_are_products_of_bfloat16():
    x, weights = some_x(9), np.random.default_rng(1).normal(size=(1, 9, CONFIG.vocab_size))
    found = {}
    for dtype in (jnp.bfloat16, jnp.float64):
        graph, state = nnx.split(decoder(dtype=dtype))

        def loss(state, x, graph=graph):
            return (weights * nnx.merge(graph, state).logits(x)).sum()

        gradient = jax.jit(jax.grad(loss, (0, 1)))
        found[dtype] = gradient(state, x.astype(dtype))
        program = gradient.lower(state, x.astype(dtype)).as_text()
        kinds = re.findall(r"dot_general.* : \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\)", program)
        name = "bf16" if dtype == jnp.bfloat16 else "f64"
        assert kinds and {*kinds} == {(name, name)}
    pairs = zip(*map(jax.tree.leaves, found.values()), strict=True)
    for near, exact in pairs:
        error = np.linalg.norm(near.astype(jnp.float64) - exact)
        assert error <= 0.01 * np.linalg.norm(exact)  # measured: 0.004


def test_rope_scaling_leaves_short_waves_and_stretches_long_ones():
    """Waves of less than 8192 / 4 positions stay, those of more than 8192 become 32 x longer."""
    config = DECODERS["llama-3.2-1b"]
    plain = llama.rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    scaled, waves = llama.rope_frequencies(config), 2 * np.pi / plain
    short, long = waves < 8192 / 4, waves > 8192
    assert short.any() and long.any() and (~short & ~long).any()
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 32, rtol=1e-6)
    between = (scaled / plain)[~short & ~long]
    assert (between > 1 / 32).all() and (between < 1).all()


def test_only_relative_positions_matter():
    model, x = decoder(), some_x(9)
    here, _ = model(x, POSITIONS, SEGMENTS)
    shifted, _ = model(x, POSITIONS + 7, SEGMENTS)
    np.testing.assert_allclose(shifted, here, rtol=1e-4, atol=1e-5)  # float32 angles
    doubled, _ = model(x, POSITIONS * 2, SEGMENTS)
    assert np.abs(doubled - here).max() > 0.01


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="heads=4 is not a multiple of kv_heads=3"):
        dataclasses.replace(CONFIG, kv_heads=3)
    with pytest.raises(ValueError, match="head_dim=5 is odd"):
        dataclasses.replace(CONFIG, head_dim=5)
    with pytest.raises(ValueError, match="remat='some' is unknown"):
        Llama(CONFIG, rngs=nnx.Rngs(0), remat="some")
