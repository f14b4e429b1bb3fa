"""The numbers that runs and answers of before were made with."""

from pathlib import Path

import numpy as np

from rvllm_jax.system import random

PACKAGE = Path(random.__file__).parents[1]


def test_no_number_has_changed():
    streams = [
        random.epoch_order(7, 3),
        random.clip(7, 3, 11),
        random.shuffled_frames(7, 3),
        random.rendered(7, 1, 3, 0),
        random.controls(7),
        random.resamples(7),
    ]
    assert [int(rng.integers(1 << 30)) for rng in streams] == [
        415651376,
        501807898,
        206890231,
        638835500,
        1014583970,
        1014583970,
    ]


def test_each_stream_is_a_pure_function_and_its_own():
    draws = {tuple(random.clip(0, e, s).integers(1 << 30, size=4)) for e in (0, 1) for s in (0, 1)}
    draws |= {tuple(random.epoch_order(0, e).integers(1 << 30, size=4)) for e in (0, 1)}
    draws |= {tuple(random.shuffled_frames(0, v).integers(1 << 30, size=4)) for v in (0, 1)}
    assert len(draws) == 8
    assert np.array_equal(random.clip(1, 2, 3).random(5), random.clip(1, 2, 3).random(5))


def test_generators_are_made_here_alone():
    """Measurements draw what nothing depends on."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(word in path.read_text() for word in ("default_rng", "SeedSequence", "RandomState"))
    }
    assert {user for user in users if not user.startswith("speed/")} == {"system/random.py"}
