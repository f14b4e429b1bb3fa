"""From feature maps to visual tokens: one a frame, a grid a frame, or frames and a grid.

`types.VisualLayout` names the kinds and counts their tokens: the data needs it too. Here is the
pooling that makes them. B clips, T frames, h x w places, E features, g x g grid, V visual tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rvllm_jax.types import VISUAL_KINDS, VisualLayout


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
