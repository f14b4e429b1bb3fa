"""Intervals of shares and means, by drawing videos anew.

Questions about one video are not independent of each other, so whole videos are drawn, with
replacement, as many as there are; the interval is between the 2.5th and the 97.5th percentile of
the ratio of sums (Davison and Hinkley 1997, section 3.8, on clustered data).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rvllm_jax.system import random

CONFIDENCE = 0.95
RESAMPLES, SEED = 2000, 0
_CELLS = 4_000_000  # of the table of drawn videos that is held at a time


class Estimate(NamedTuple):
    """A mean with its interval, both None where there is no value, the interval also where all
    are of one video; `n` values."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def mean(
    values: Sequence[float], videos: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Estimate:
    """The mean of `values`, one a question, with the interval by video.

    Args:
      values: numbers; booleans count as 0 and 1.
      videos: of each value; questions of one video are drawn together.
      resamples: how many draws of all videos.
      seed: of the draws; equal videos in equal order are drawn equally.

    Raises ValueError for values that are not finite, or not as many as videos.
    """
    values = np.asarray(values, np.float64)
    if len(values) != len(videos):
        raise ValueError(f"got {len(values)} values of {len(videos)} videos; expected one of each")
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of {len(values)} values are not finite")
    if not len(values):
        return Estimate(None, None, None, 0)
    value = float(values.mean())
    _, of = np.unique(np.asarray(videos, object).astype(str), return_inverse=True)
    sums, counts = np.bincount(of, values), np.bincount(of).astype(np.float64)
    if len(sums) < 2:
        return Estimate(value, None, None, len(values))
    tail = 50 * (1 - CONFIDENCE)
    ratios = np.concatenate(
        [(drawn @ sums) / (drawn @ counts) for drawn in _draws(len(sums), resamples, seed)]
    )
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), len(values))


def _draws(videos: int, resamples: int, seed: int):
    """How often each video is drawn, float64[part, videos], until there are `resamples` rows."""
    rng = random.resamples(seed)
    part = max(1, _CELLS // videos)
    for start in range(0, resamples, part):
        rows = min(part, resamples - start)
        picked = rng.integers(videos, size=(rows, videos))
        picked += videos * np.arange(rows)[:, None]
        counts = np.bincount(picked.ravel(), minlength=rows * videos)
        yield counts.reshape(rows, videos).astype(np.float64)
