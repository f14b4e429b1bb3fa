"""From pooled features to the decoder's width, with a learned embedding of each token's place.

B clips, V visual tokens, E features, g x g grid, D decoder width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.types import VisualLayout

PROJECTOR_KINDS = ("linear", "mlp2x_gelu")


def add_places(x_BVD: jax.Array, places_pD: jax.Array, layout: VisualLayout) -> jax.Array:
    """The tokens `[B, V, D]` of a `layout` with a grid, each with its place's embedding added."""
    if layout.kind == "grid":
        return x_BVD + jnp.tile(places_pD, (layout.frames, 1))
    # spatiotemporal: the tokens of whole frames come first, and have no place.
    return x_BVD.at[:, layout.frames :].add(places_pD)


class Projector(nnx.Module):
    """Visual tokens to the decoder's width: one linear layer, or two with GELU (LLaVA-1.5).

    "linear" has `linear_1` only; "mlp2x_gelu" is `linear_1` E -> D, exact GELU, `linear_2` D -> D.
    For a `layout` with a grid it also adds a learned embedding of each place, `places`, drawn with
    `place_std`: the decoder's own positions say where a token stands in the sequence and not where
    in the frame, of which a ResNet's features hold little. `global` tokens have no place.
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
        self.kind, self.layout = kind, layout
        self.linear_1 = nnx.Linear(features, width, **dtypes)
        if kind == "mlp2x_gelu":
            self.linear_2 = nnx.Linear(width, width, **dtypes)
        has_places = layout is not None and layout.kind != "global"
        dtypes["embedding_init"] = nnx.initializers.normal(place_std)
        self.places = nnx.Embed(layout.grid**2, width, **dtypes) if has_places else None

    def __call__(self, x_BVE: jax.Array) -> jax.Array:
        """`dtype[B, V, D]` of `[B, V, E]`; without places any `[..., E]`."""
        x_BVD = self.linear_1(x_BVE)
        if self.kind == "mlp2x_gelu":
            # LLaVA was trained with the exact GELU; the tanh form differs by up to 1e-3.
            x_BVD = self.linear_2(jax.nn.gelu(x_BVD, approximate=False))
        if self.places is None:
            return x_BVD
        return add_places(x_BVD, self.places.embedding[...].astype(self.places.dtype), self.layout)
