"""What a checkpoint was made of: pairs, rows and the files of the videos."""

import numpy as np
import pytest

from rvllm_jax.data.batches.clips import FrameSampling
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text import tokenizer
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.video import encode
from rvllm_jax.training.resume import differences, fingerprint
from rvllm_jax.types import Example, Turn, VisualLayout

TEMPLATE = TEMPLATES["short"]
NAMES = ("a.mp4", "b.mp4")


@pytest.fixture
def dataset(tmp_path):
    """dataset(brightness of each video, answers, input) -> a Dataset of their two conversations."""

    def dataset(levels=(50, 90), answers=("red", "blue"), input="video", unused=None) -> Dataset:
        for name, level in zip(NAMES, levels, strict=True):
            encode.write(tmp_path / name, np.full((8, 16, 16, 3), level, np.uint8), fps=8)
        paths = {name: tmp_path / name for name in NAMES}
        if unused is not None:
            encode.write(tmp_path / "c.mp4", np.full((8, 16, 16, 3), unused, np.uint8), fps=8)
            paths["c.mp4"] = tmp_path / "c.mp4"
        write_store(tmp_path / "store", paths, StoreOptions(short_side=16))
        pairs = zip(NAMES, answers, strict=True)
        examples = [Example(n, n, (Turn("What?", a),), a) for n, a in pairs]
        tk = tokenizer.train(["What? red blue"], 280)
        sizes = dict(input=input, context=64, max_segments=2, crop=16)
        options = DatasetOptions(VisualLayout("global", 4), FrameSampling(4, 1), **sizes)
        return Dataset(examples, FrameStore(tmp_path / "store"), tk, TEMPLATE, options)

    return dataset


def test_a_fingerprint_is_that_of_pairs_rows_and_files(dataset):
    first = fingerprint(dataset())
    # As runs of before have it, which are continued: neither content nor names in it may change.
    assert first == "2 conversations in 2 rows, dd82e7b23703735c"
    assert fingerprint(dataset()) == first  # written again: the same content, another time
    assert fingerprint(dataset(unused=3)) == fingerprint(dataset(unused=4)) == first
    others = [dataset(answers=("red", "red")), dataset(levels=(50, 91))]
    assert first not in map(fingerprint, others)


def test_of_text_alone_the_videos_do_not_count(dataset):
    text = fingerprint(dataset(input="caption_in_slot"))
    assert text == "2 conversations in 2 rows, ff64cd030cfcbb68"  # as checkpoints have it
    assert fingerprint(dataset(levels=(1, 2), input="caption_in_slot")) == text


def test_differences_are_named():
    assert differences({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == [
        "b: 2 there, 3 now",
        "c: absent there, 4 now",
    ]
