"""From feature maps to visual tokens: pooling by the layout, projection to the decoder, and where
in the frame each token is.

B clips, T frames, h x w places, E features, g x g grid, V visual tokens, D decoder width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.types import VISUAL_KINDS, VisualLayout

PROJECTOR_KINDS = ("linear", "mlp2x_gelu")


class Places(nnx.Module):
    """A learned embedding of each place of the grid, added to the projected tokens of that place.

    The decoder's own positions say where a token stands in the row and not where in the frame, and
    of that a ResNet tells little. ResNetVLLM's `global` tokens have no place and need none.
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
    For a `layout` with a grid it also adds the `Places`, drawn with `place_std`.
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
        self.places = Places(layout, width, place_std, **dtypes) if has_places else None

    def __call__(self, x_BVE: jax.Array) -> jax.Array:
        """`dtype[B, V, D]` of `[B, V, E]`; without places any `[..., E]`."""
        x_BVD = self.linear_1(x_BVE)
        if self.kind == "mlp2x_gelu":
            # LLaVA was trained with the exact GELU; the tanh form differs by up to 1e-3.
            x_BVD = self.linear_2(jax.nn.gelu(x_BVD, approximate=False))
        return x_BVD if self.places is None else self.places(x_BVD)


def pool(features_BThwE: jax.Array, frame_mask_BT: jax.Array, layout: VisualLayout) -> jax.Array:
    """The visual tokens `[B, V, E]` in the order of `layout`, in the features' dtype.

    Averages are taken in float32 or better. Tokens of padded frames are zero, padded frames count
    in no average over time, and a clip without real frames is all zeros. ValueError where T is not
    `layout.frames` or the feature map has fewer than g x g places.
    """
    _, frames, _, _, features = features_BThwE.shape
    if frames != layout.frames:
        raise ValueError(f"pool: clips of {frames} frames, the layout has {layout.frames}")
    if layout.kind not in VISUAL_KINDS:
        raise ValueError(f"pool: layout {layout.kind!r}, expected one of {VISUAL_KINDS}")
    dtype = features_BThwE.dtype
    # `where` and not a product: a padded frame's features must not matter, not even a NaN.
    mask_BT111 = frame_mask_BT[:, :, None, None, None]
    x_BThwE = jnp.where(mask_BT111, features_BThwE, 0).astype(jnp.promote_types(dtype, jnp.float32))
    if layout.kind == "global":
        return x_BThwE.mean((2, 3)).astype(dtype)
    if layout.kind == "grid":
        x_BTggE = adaptive_average(x_BThwE, layout.grid)
        return x_BTggE.reshape(len(x_BTggE), layout.tokens, features).astype(dtype)
    return _spatiotemporal(x_BThwE, frame_mask_BT, layout).astype(dtype)


def _spatiotemporal(x_BThwE, frame_mask_BT, layout):
    x_BTE = x_BThwE.mean((2, 3))
    real_B1 = jnp.maximum(frame_mask_BT.sum(1, dtype=x_BTE.dtype), 1)[:, None, None, None]
    x_BggE = adaptive_average(x_BThwE.sum(1) / real_B1, layout.grid)
    x_BpE = x_BggE.reshape(len(x_BggE), layout.grid**2, -1)
    return jnp.concatenate([x_BTE, x_BpE], axis=1)


def adaptive_average(x_hwE: jax.Array, grid: int) -> jax.Array:
    """Averages `[..., h, w, E]` to `[..., g, g, E]`, each place over the rows
    floor(i h / g) to ceil((i + 1) h / g) and the like columns: torch's adaptive_avg_pool2d.

    ValueError where h or w is below g: tokens would repeat one place.
    """
    height, width = x_hwE.shape[-3:-1]
    if min(height, width) < grid:
        raise ValueError(
            f"visual grid {grid} x {grid} is finer than the encoder's feature map {height} x "
            f"{width}; use a smaller grid, larger frames, or an encoder of smaller stride"
        )
    rows_gh = jnp.asarray(_averaging(height, grid), x_hwE.dtype)
    columns_gw = jnp.asarray(_averaging(width, grid), x_hwE.dtype)
    # Highest: the default precision on GPU and TPU would round the averages to 10 or 7 bits.
    return jnp.einsum(
        "gh,...hwe,kw->...gke", rows_gh, x_hwE, columns_gw, precision=jax.lax.Precision.HIGHEST
    )


def _averaging(size: int, grid: int) -> np.ndarray:
    weights_gs = np.zeros((grid, size))
    for i in range(grid):
        start, stop = i * size // grid, -(-(i + 1) * size // grid)
        weights_gs[i, start:stop] = 1 / (stop - start)
    return weights_gs
