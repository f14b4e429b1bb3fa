"""From pooled features to the decoder's width, with a learned embedding of each token's place.

B clips, V visual tokens, E features, g x g grid, D decoder width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.types import VisualLayout

PROJECTOR_KINDS = ("linear", "mlp2x_gelu")


class SpatialEmbedding(nnx.Module):
    """A learned embedding of each place of the grid, added to the projected tokens of that place.

    The decoder's own positions say where a token stands in the sequence and not where in the frame,
    of which a ResNet's features hold little. ResNetVLLM's `global` tokens have no place.
    """

    def __init__(
        self,
        layout: VisualLayout,
        width: int,
        std: float,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
    ):
        self.layout, self.dtype = layout, dtype
        init = nnx.initializers.normal(std)
        self.embedding = nnx.Param(init(rngs.params(), (layout.grid**2, width), param_dtype))

    def __call__(self, x_BVD: jax.Array) -> jax.Array:
        """The tokens `[B, V, D]` of `layout`, each with the embedding of its place added."""
        places_pD = self.embedding[...].astype(self.dtype)
        if self.layout.kind == "grid":
            return x_BVD + jnp.tile(places_pD, (self.layout.frames, 1))
        # spatiotemporal: the tokens of whole frames come first, and have no place.
        return x_BVD.at[:, self.layout.frames :].add(places_pD)


class Projector(nnx.Module):
    """Visual tokens to the decoder's width: one linear layer, or two with GELU (LLaVA-1.5).

    "linear" has `linear_1` only; "mlp2x_gelu" is `linear_1` E -> D, exact GELU, `linear_2` D -> D.
    For a `layout` with a grid it also adds a `SpatialEmbedding`, drawn with `place_std`.
    """

    def __init__(
        self,
        features: int,
        width: int,
        kind: str = "linear",
        layout: VisualLayout | None = None,
        place_std: float = 0.02,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
    ):
        if kind not in PROJECTOR_KINDS:
            raise ValueError(f"Projector: kind={kind!r}, expected one of {PROJECTOR_KINDS}")
        dtypes = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.kind = kind
        self.linear_1 = nnx.Linear(features, width, **dtypes)
        if kind == "mlp2x_gelu":
            self.linear_2 = nnx.Linear(width, width, **dtypes)
        has_places = layout is not None and layout.kind != "global"
        self.places = SpatialEmbedding(layout, width, place_std, **dtypes) if has_places else None

    def __call__(self, x_BVE: jax.Array) -> jax.Array:
        """`dtype[B, V, D]` of `[B, V, E]`; without places any `[..., E]`."""
        x_BVD = self.linear_1(x_BVE)
        if self.kind == "mlp2x_gelu":
            # LLaVA was trained with the exact GELU; the tanh form differs by up to 1e-3.
            x_BVD = self.linear_2(jax.nn.gelu(x_BVD, approximate=False))
        return x_BVD if self.places is None else self.places(x_BVD)
