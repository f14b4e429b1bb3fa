"""The projector's kinds, and the embedding of each token's place."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.models.projector import Projector, add_places
from rvllm_jax.models.visual_tokens import pool
from rvllm_jax.types import VisualLayout


@pytest.mark.parametrize("kind, layers", [("linear", 1), ("mlp2x_gelu", 2)])
def test_projector_kinds(kind, layers):
    projector = Projector(5, 7, kind, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    flat = nnx.to_flat_state(nnx.state(projector))
    paths = {"/".join(path): leaf.shape for path, leaf in flat}
    expected = {"linear_1/kernel": (5, 7), "linear_1/bias": (7,)}
    if layers == 2:
        expected |= {"linear_2/kernel": (7, 7), "linear_2/bias": (7,)}
    assert paths == expected
    assert {leaf[...].dtype for _, leaf in flat} == {jnp.dtype(jnp.float32)}
    tokens = projector(jnp.ones((2, 3, 5)))
    assert (tokens.shape, tokens.dtype) == ((2, 3, 7), jnp.bfloat16)


def test_linear_projector_is_linear():
    projector = Projector(5, 7, rngs=nnx.Rngs(0))
    x_VE = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    zero = projector(0 * x_VE)
    np.testing.assert_allclose(
        projector(-2 * x_VE) - zero, -2 * (projector(x_VE) - zero), rtol=1e-4, atol=1e-5
    )


def test_unknown_projector_is_refused():
    with pytest.raises(ValueError, match="kind='mlp', expected one of"):
        Projector(5, 7, "mlp", rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["grid", "spatiotemporal"])
def test_each_place_adds_its_own_embedding(kind):
    """A token moved to another place moves by the difference of the places' embeddings."""
    layout = VisualLayout(kind, 3, grid=2)
    projector = Projector(5, 7, "linear", layout, 1.0, rngs=nnx.Rngs(0))
    embedding_pD = projector.places.embedding[...]
    added_VD = add_places(jnp.zeros((2, layout.tokens, 7)), embedding_pD, layout)[1]
    assert embedding_pD.shape == (4, 7) and len(np.unique(embedding_pD)) == 28
    for row in range(2):  # a feature map that is 1 at one place and 0 elsewhere finds that place
        for column in range(2):
            x_BThwE = np.zeros((1, 3, 4, 4, 1), np.float32)
            x_BThwE[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
            (marks_V,) = pool(x_BThwE, np.ones((1, 3), bool), layout)[..., 0]
            for token in np.flatnonzero(marks_V == 1):
                np.testing.assert_array_equal(added_VD[token], embedding_pD[2 * row + column])
    if kind == "spatiotemporal":
        np.testing.assert_array_equal(added_VD[:3], 0)


def test_only_layouts_with_a_grid_have_places():
    def paths(kind):
        projector = Projector(5, 7, "linear", VisualLayout(kind, 3, grid=2), rngs=nnx.Rngs(0))
        return {"/".join(path) for path, _ in nnx.to_flat_state(nnx.state(projector))}

    assert paths("global") == {"linear_1/kernel", "linear_1/bias"}
    assert paths("grid") == paths("spatiotemporal") == paths("global") | {"places/embedding"}
