"""Everything that is drawn at random, each from a stream of its own: no draw shifts another.

A generator is a pure function of the numbers it is made of, so that any process draws the same, in
any order and after any restart. Checkpoints and answers depend on the numbers: none may change.

On the device, from `jax.random`, which processes that read do without: parameters from the key of
`config.seed` (models/functional.py), and the token of a step from `fold_in` of the answer's own
seed and the step (generation/sampling.py).
"""

import numpy as np

_ORDER, _CLIP, _FRAMES = 0, 1, 2  # the first number of each stream of a run


def epoch_order(seed: int, epoch: int) -> np.random.Generator:
    """The order in which an epoch takes its sequences."""
    return np.random.default_rng((_ORDER, seed, epoch))


def clip(seed: int, epoch: int, sequence: int) -> np.random.Generator:
    """Which frames, which crop and whether mirrored: of a sequence's video, in an epoch."""
    return np.random.default_rng((_CLIP, seed, epoch, sequence))


def shuffled_frames(seed: int, video: int) -> np.random.Generator:
    """The order of a clip's frames, for the control that is asked with shuffled ones."""
    return np.random.default_rng((_FRAMES, seed, video))


def rendered(seed: int, split: int, index: int, part: int) -> np.random.Generator:
    """A clip of the embedded dataset: part 0 is its scene, part 1 the noise of its pixels."""
    return np.random.default_rng((seed, split, index, part))


def controls(seed: int) -> np.random.Generator:
    """Which questions are asked under the controls."""
    return np.random.default_rng(seed)


def resamples(seed: int) -> np.random.Generator:
    """The videos of each resample of an interval."""
    return np.random.default_rng(seed)
