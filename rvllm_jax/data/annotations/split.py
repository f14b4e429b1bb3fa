"""Which split of its benchmark a file of annotations holds, as far as anything shows.

The numbers of the questions do, where a benchmark numbers them through its splits; so does the
number of rows where it is a published one, and the file's name where it is the one that its authors
gave it. ActivityNet-QA's questions are called after their videos, and nothing in these shows their
split: of a part of one, only the file's name does.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from absl import logging

from rvllm_jax.data.annotations.published import (
    NUMBERED,
    PUBLISHED,
    number_of,
    numbered_split,
    other_split,
)
from rvllm_jax.data.annotations.read import AnnotationPart, Annotations
from rvllm_jax.data.annotations.recognise import most

_NAMES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation",
    "validation": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = set(_NAMES.values())
MEANT = {name: split for name, split in _NAMES.items() if name != split}  # as others name them
_NUMBERED_FORMATS = ("zero_shot", "msvd_msrvtt_original")  # the first keeps the second's numbers
NUMBERS, ROWS, NAME, ONLY, NOTHING = "numbers", "rows", "file name", "only split", ""


def evidence(part: AnnotationPart) -> str:
    """What shows the split of these rows: one of NUMBERS, ROWS, NAME, ONLY and NOTHING."""
    return next((kind for kind, _, _ in _signs(part)), NOTHING)


def contradiction(part: AnnotationPart, split: str) -> str:
    """In words, what shows that these are not rows of their benchmark's `split`; else "".

    Rows of no known benchmark are of whatever split their owner says, and by a name of the owner's
    a part of a split may be called.
    """
    for kind, splits, words in _signs(part):
        if splits != {split} and (split in SPLITS or kind in (NUMBERS, ROWS)):
            return words
    counts = PUBLISHED.get(part.benchmark, {}).get(split)
    if counts and (part.rows > counts.questions or part.videos > (counts.videos or part.videos)):
        return (
            f"{part.rows:,} rows on {part.videos:,} videos are more than the "
            f"{counts.questions:,}{f' on {counts.videos:,}' if counts.videos else ''} of "
            f"{part.benchmark}'s split {split}"
        )
    return ""


def refusal(parts: Iterable[AnnotationPart], split: str) -> str:
    """Why files are not taken as of `split`, in words; "" where nothing speaks against it.

    What every command says that takes annotations with a split's name. Of one's own, a file named
    after another split is taken, with a warning.
    """
    if meant := MEANT.get(split):
        return f"--split={split}: expected {meant}"
    for part in parts:
        if wrong := contradiction(part, split):
            return (
                f"{', '.join(part.paths)}: {wrong}, and --split={split} was given; published "
                f"numbers differ in it. Give the split that the files hold, the files of {split}, "
                "or --own, where the annotations are your own"
            )
        named = _named(part)
        if not part.benchmark and split in SPLITS and named and named != {split}:
            logging.warning(
                "%s: named after the split %s, and taken as of --split=%s",
                ", ".join(part.paths), " or ".join(sorted(named)), split,
            )  # fmt: skip
    return ""


def without_benchmark(annotations: Annotations) -> Annotations:
    """The same as one's own annotations (--own): whatever they resemble, nothing is known of
    them."""
    parts = [dataclasses.replace(part, benchmark="") for part in annotations.parts]
    return dataclasses.replace(annotations, parts=parts)


def _signs(part: AnnotationPart) -> Iterator[tuple[str, set[str], str]]:
    """All that shows the split of these rows, the surest first: what it is, the splits, words."""
    benchmark, splits = part.benchmark, PUBLISHED.get(part.benchmark, {})
    if _numbered(part):
        split = numbered_split(benchmark, [example.id for example in part.examples])
        words = f"the questions' numbers are those of {benchmark}'s split {split}"
        if split not in splits:
            words = f"the questions' numbers, {split}, are of no one split of {benchmark}"
        yield NUMBERS, {split}, words
        return  # the name may be wrong
    if split := other_split(benchmark, "", part.rows):
        yield ROWS, {split}, f"{part.rows:,} rows are those of {benchmark}'s split {split}"
    if benchmark.startswith("video_text_generation/"):
        yield ONLY, set(splits), f"{benchmark} has the split {', '.join(splits)} alone"
    if splits and (named := _named(part)):
        its_splits = " or ".join(sorted(named))
        yield NAME, named, f"the file's name is that of {benchmark}'s split {its_splits}"


def _numbered(part: AnnotationPart) -> bool:
    """Whether most questions' ids end in the numbers that run through the benchmark's splits.

    What Video-ChatGPT calls test_q.json of MSVD-QA and MSRVTT-QA is their validation split: there
    the numbers are right, and the names are not.
    """
    return (
        part.benchmark in NUMBERED
        and part.format in _NUMBERED_FORMATS
        and most(number_of(example.id).isdecimal() for example in part.examples)
    )


def _named(part: AnnotationPart) -> set[str]:
    """The splits that the files' names begin with: val_q.json, Test_frameqa_question.csv."""
    first = (re.match("[a-z]*", Path(path).stem.lower())[0] for path in part.paths)
    return {_NAMES[word] for word in first if word in _NAMES}
