import argparse
import re

import pytest

from rvllm_jax.speed import evaluation


@pytest.mark.slow
def test_both_ways_are_measured_on_the_same_questions():
    parser = argparse.ArgumentParser()
    evaluation.add_arguments(parser)
    sizes = "--encoder=narrow --width=64 --layers=1 --frames=2 --side=32 --new=2 --rounds=1"
    arguments = parser.parse_args([*sizes.split(), "--questions=3", "--clips", "5x5"])
    *_, theirs, ours = evaluation.run(arguments)
    assert theirs.startswith("5 clips a video")  # all crops of so small a frame are one
    rates = [float(line.split()[-2]) for line in (theirs, ours)]
    assert min(rates) > 0 and re.search(r"one by one +[\d.]+ +1\.0", theirs)
    assert float(ours.split()[-1]) == pytest.approx(rates[1] / rates[0], rel=0.2)
