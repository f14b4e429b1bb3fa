"""Visual tokens follow the layout and the frame mask; tests/parity compares with torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models.visual_tokens import pool
from rvllm_jax.types import VISUAL_KINDS, VisualLayout

MASK_BT = np.array([[True, True, True], [True, False, False], [False, False, False]])


def features(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(3, 3, 4, 4, 5)).astype(dtype)


@pytest.mark.parametrize("kind", VISUAL_KINDS)
def test_tokens_are_in_the_layouts_order(kind):
    """Every token of a full clip, written out as a loop."""
    x_BThwE = features()
    tokens = pool(x_BThwE, MASK_BT, VisualLayout(kind, 3, grid=2))
    places = [
        (slice(None), slice(None), slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
        for i in range(2)
        for j in range(2)
    ]
    average = x_BThwE.mean((2, 3))
    expected = {
        "global": [average[0, t] for t in range(3)],
        "grid": [x_BThwE[p].mean((2, 3))[0, t] for t in range(3) for p in places],
        "spatiotemporal": [average[0, t] for t in range(3)]
        + [x_BThwE[p].mean((1, 2, 3))[0] for p in places],
    }[kind]
    np.testing.assert_allclose(tokens[0], np.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", VISUAL_KINDS)
def test_padded_frames_are_not_pooled(kind):
    x_BThwE = features()
    x_BThwE[~MASK_BT] = np.nan
    layout = VisualLayout(kind, 3, grid=2)
    tokens = np.asarray(pool(x_BThwE, MASK_BT, layout))
    assert np.isfinite(tokens).all()
    for clip, num_frames in enumerate(MASK_BT.sum(1)):
        filled = layout.filled(num_frames)
        assert (tokens[clip, filled] != 0).all()
        np.testing.assert_array_equal(np.delete(tokens[clip], filled, axis=0), 0)
    one_frame = pool(x_BThwE[1:2, :1], MASK_BT[1:2, :1], VisualLayout(kind, 1, grid=2))
    np.testing.assert_allclose(tokens[1, layout.filled(1)], one_frame[0], rtol=1e-6)


@pytest.mark.parametrize("kind", VISUAL_KINDS)
def test_gradients_reach_real_frames_alone(kind):
    layout = VisualLayout(kind, 3, grid=2)
    gradient = jax.grad(lambda x: pool(x, MASK_BT, layout).sum())(features())
    assert (np.asarray(gradient)[MASK_BT] != 0).all()
    assert (np.asarray(gradient)[~MASK_BT] == 0).all()


@pytest.mark.parametrize("kind", VISUAL_KINDS)
def test_bfloat16_is_averaged_in_float32_and_rounded_once(kind):
    x_BThwE = jnp.asarray(features(), jnp.bfloat16)
    layout = VisualLayout(kind, 3, grid=3)
    tokens = pool(x_BThwE, MASK_BT, layout)
    expected = pool(x_BThwE.astype(jnp.float32), MASK_BT, layout)
    assert (tokens.dtype, expected.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(tokens, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "layout, message",
    [
        (VisualLayout("grid", 3, grid=5), "grid 5 x 5 is finer than .* map 4 x 4"),
        (VisualLayout("spatiotemporal", 3, grid=5), "grid 5 x 5 is finer"),
        (VisualLayout("global", 4), "clips of 3 frames, the layout has 4"),
        (VisualLayout("pyramid", 3), "layout 'pyramid', expected one of"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        pool(features(), MASK_BT, layout)
