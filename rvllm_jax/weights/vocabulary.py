"""Growing a vocabulary, an explicit step: never done by loading."""

import numpy as np

from rvllm_jax.weights.safetensors import WeightsError

# The vocabulary's axis of each array that has one.
AXES = {"decoder/embed/embedding": 0, "decoder/head/kernel": 1}


def grow(path: str, array: np.ndarray, size: int) -> np.ndarray:
    """The array of `path` with rows for `size` tokens; arrays without a vocabulary as they are.

    New rows are the mean of the old ones, so that a new token is no likelier than the average one
    (Hewitt 2021). Raises WeightsError where the vocabulary would shrink.
    """
    if path not in AXES:
        return array
    axis, old = AXES[path], array.shape[AXES[path]]
    if size < old:
        raise WeightsError(f"{path}: has {old} tokens, and {size} are asked for: tokens would go")
    wide = np.promote_types(array.dtype, np.float32)
    mean = array.mean(axis=axis, keepdims=True, dtype=wide).astype(array.dtype)
    return np.concatenate([array, np.repeat(mean, size - old, axis)], axis)
