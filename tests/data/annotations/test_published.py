"""Counts that are compared with published ones."""

import pytest

from rvllm_jax.data.annotations.published import PUBLISHED, numbered_split, other_split, shortfall

ISSUED = {  # written out again: a slip in the table must not pass
    ("activitynet_qa", "test"): (8000, 800),
    ("tgif_frameqa", "test"): (13691, 7132),
    ("video_text_generation/generic", "test"): (1996, 499),
    ("video_text_generation/temporal", "test"): (499, None),
    ("video_text_generation/consistency", "test"): (499, None),
    ("msvd_qa", "validation"): (6415, 245),
    ("msrvtt_qa", "validation"): (12278, 497),
}


@pytest.mark.parametrize("of", ISSUED, ids="-".join)
def test_a_split_is_whole_with_its_published_counts_and_with_no_fewer(of):
    (benchmark, split), (questions, videos) = of, ISSUED[of]
    assert shortfall(benchmark, split, questions, videos or 0) == ""
    lack = shortfall(benchmark, split, questions - 1, videos or 0)
    assert lack == f"{benchmark} {split}: {questions - 1:,} of {questions:,} questions"
    if videos:
        lack = shortfall(benchmark, split, questions, videos - 1)
        assert lack == f"{benchmark} {split}: {videos - 1:,} of {videos:,} videos"


def test_nothing_lacks_where_nothing_is_published():
    assert shortfall("", "test", 1, 1) == shortfall("tgif_frameqa", "mine", 1, 1) == ""


def test_counts_of_another_split_tell_which_it_is():
    assert other_split("msvd_qa", "test", 6415) == "validation"
    assert other_split("msvd_qa", "validation", 6415) == ""
    assert other_split("msvd_qa", "test", 6414) == other_split("", "test", 6415) == ""
    for splits in PUBLISHED.values():  # else a count would tell nothing
        assert len({counts.questions for counts in splits.values()}) == len(splits)


def test_questions_are_numbered_through_train_validation_and_test():
    for benchmark in ("msvd_qa", "msrvtt_qa"):
        first = 0
        for split in ("train", "validation", "test"):
            last = first + PUBLISHED[benchmark][split].questions - 1
            assert numbered_split(benchmark, [f"7_{last}", f"7_{first}"]) == split
            first = last + 1
        assert numbered_split(benchmark, ["0", str(first - 1)]) == f"0 to {first - 1}"
        assert numbered_split(benchmark, [str(first)]) == f"{first} to {first}"


def test_the_counts_are_those_that_are_published():
    """As the papers and the READMEs of the datasets give them."""
    assert PUBLISHED == {  # a Counts equals the tuple of its numbers
        "activitynet_qa": {
            "train": (32_000, 3_200), "validation": (18_000, 1_800), "test": (8_000, 800),
        },
        "msvd_qa": {"train": (30_933, None), "validation": (6_415, 245), "test": (13_157, None)},
        "msrvtt_qa": {
            "train": (158_581, None), "validation": (12_278, 497), "test": (72_821, None),
        },
        "tgif_frameqa": {"test": (13_691, 7_132)},
        "video_text_generation/generic": {"test": (1_996, 499)},
        "video_text_generation/temporal": {"test": (499, None)},
        "video_text_generation/consistency": {"test": (499, None)},
    }  # fmt: skip
