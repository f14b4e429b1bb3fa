"""How many questions, on how many videos, the published splits of the benchmarks have.

Numbers measured on fewer are not comparable with published ones, and neither are numbers of
another split under the same name: what calls itself Video-ChatGPT's test file of MSVD-QA and of
MSRVTT-QA is in truth their validation split.

Sources: ActivityNet-QA, the README of its dataset; MSVD-QA and MSRVTT-QA, Xu et al. 2017, and the
videos that their validation files name; TGIF-QA, Jang et al. 2017; Video-ChatGPT, Maaz et al. 2023.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Counts(NamedTuple):
    """Questions (rows of the benchmark) and the videos they are about; None: not published."""

    questions: int
    videos: int | None


PUBLISHED: dict[str, dict[str, Counts]] = {
    "activitynet_qa": {
        "train": Counts(32_000, 3_200),
        "validation": Counts(18_000, 1_800),
        "test": Counts(8_000, 800),
    },
    "msvd_qa": {
        "train": Counts(30_933, None),
        "validation": Counts(6_415, 245),
        "test": Counts(13_157, None),
    },
    "msrvtt_qa": {
        "train": Counts(158_581, None),
        "validation": Counts(12_278, 497),
        "test": Counts(72_821, None),
    },
    "tgif_frameqa": {"test": Counts(13_691, 7_132)},
    "video_text_generation/generic": {"test": Counts(1_996, 499)},
    "video_text_generation/temporal": {"test": Counts(499, None)},
    "video_text_generation/consistency": {"test": Counts(499, None)},
}


def shortfall(benchmark: str, split: str, questions: int, videos: int) -> str:
    """In words, what a split lacks of its published counts; "" where it lacks nothing.

    Nothing is known, and nothing lacks, where the benchmark or its split is not in `PUBLISHED`.
    """
    expected = PUBLISHED.get(benchmark, {}).get(split)
    if expected is None:
        return ""
    lacking = []
    if questions < expected.questions:
        lacking.append(f"{questions:,} of {expected.questions:,} questions")
    if expected.videos is not None and videos < expected.videos:
        lacking.append(f"{videos:,} of {expected.videos:,} videos")
    return f"{benchmark} {split}: {' and '.join(lacking)}" if lacking else ""


def other_split(benchmark: str, split: str, questions: int) -> str:
    """The split that has as many questions as were counted, where `split` has not; else ""."""
    splits = PUBLISHED.get(benchmark, {})
    if split in splits and splits[split].questions == questions:
        return ""
    return next((name for name, counts in splits.items() if counts.questions == questions), "")


NUMBERED = ("msvd_qa", "msrvtt_qa")  # number their questions through train, validation and test


def number_of(id: str) -> str:
    """The number of a question in its id: MSRVTT-QA's whole id, MSVD-QA's behind the video's."""
    return id.rpartition("_")[2]


def numbered_split(benchmark: str, ids: Iterable[str]) -> str:
    """The split of questions of MSVD-QA or MSRVTT-QA, by the numbers that their ids end in.

    Video-ChatGPT's pairs keep the numbers of the original, in which they run through train,
    validation and test. Ids without a number show nothing. Returns "a to b" of the numbers where
    they are of no one split; at least one id has one.
    """
    numbers = [int(number) for number in map(number_of, ids) if number.isdecimal()]
    first, last, start = min(numbers), max(numbers), 0
    for split, counts in PUBLISHED[benchmark].items():
        if start <= first and last < start + counts.questions:
            return split
        start += counts.questions
    return f"{first} to {last}"
