"""The splits of a dataset, read from the annotation files of a folder and checked.

What is published about a split is checked here: numbers measured on fewer questions than others
used, or on another split under the same name, are not comparable with theirs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rvllm_jax.data.annotations import Annotations, Part, read
from rvllm_jax.data.annotations import split as splits
from rvllm_jax.data.annotations.example import AnnotationError, Example
from rvllm_jax.data.annotations.published import (
    PUBLISHED,
    Counts,
    numbered_split,
    other_split,
    shortfall,
)
from rvllm_jax.data.prepare.run import INFO
from rvllm_jax.data.tfds.stored_names import stored_names
from rvllm_jax.system.atomic import read_json_or_empty

_NAMED = 5  # how many offenders a message names


@dataclasses.dataclass(frozen=True)
class TfdsDataset:
    """How a dataset's annotations are published.

    Attributes:
        dataset: its name.
        files: split -> alternatives, each the names of the files that hold the split together.
        formats: those of `annotations.FORMATS` that the files may be in.
        benchmarks: split -> (benchmark, split) of `PUBLISHED`; absent: no counts are published.
        numbered: the number that ends a question's id runs through train, validation and test, and
            tells to which of them a pair of questions and answers belongs, whatever it is called;
            an original file that is called otherwise is refused.
    """

    dataset: str
    files: Mapping[str, tuple[tuple[str, ...], ...]]
    formats: tuple[str, ...]
    benchmarks: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    numbered: bool = False

    def published(self, split: str) -> Counts | None:
        """The published counts of a split."""
        benchmark, its_split = self.benchmarks.get(split, ("", ""))
        return PUBLISHED.get(benchmark, {}).get(its_split)


def numbered_source(dataset: str) -> TfdsDataset:
    """MSVD-QA or MSRVTT-QA, which are published alike: original files, or Video-ChatGPT's pairs."""
    return TfdsDataset(
        dataset=dataset,
        files={
            "train": (("train_qa.json",), ("train_q.json", "train_a.json")),
            "validation": (("val_qa.json",), ("val_q.json", "val_a.json")),
            "test": (("test_qa.json",), ("test_q.json", "test_a.json")),
        },
        formats=("msvd_msrvtt_original", "zero_shot"),
        benchmarks={split: (dataset, split) for split in ("train", "validation", "test")},
        numbered=True,
    )


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as it was read; `facts` is what metadata.json records of it."""

    examples: list[Example]
    facts: dict


def read_splits(folder: Path, source: TfdsDataset, *, allow_partial: bool) -> dict[str, Split]:
    """Reads the splits of which `folder` holds the files, and of a split all or nothing.

    Raises:
        AnnotationError: no files; files of another format, dataset or split; fewer questions or
            videos than are published, or broken rows where nothing is published, unless
            `allow_partial`; more than are published; two files of one split.
    """
    found: dict[str, Split] = {}
    for named, alternatives in source.files.items():
        for names in alternatives:
            paths = [folder / name for name in names]
            if not any(path.is_file() for path in paths):
                continue
            split, own = _read(folder, paths, source, named, allow_partial)
            if split in found:
                raise AnnotationError(
                    f"{folder}: {', '.join(names)} and {', '.join(found[split].facts['files'])} "
                    f"hold the same split of {source.dataset}, {split!r}; leave one of them here"
                )
            found[split] = own
    if not found:
        choices = [" + ".join(names) for several in source.files.values() for names in several]
        raise AnnotationError(
            f"{folder}: holds no annotations of {source.dataset}; expected one or more of "
            f"{', '.join(choices)}"
        )
    return {split: found[split] for split in source.files if split in found}


def _read(
    folder: Path, paths: Sequence[Path], source: TfdsDataset, named: str, allow_partial: bool
) -> tuple[str, Split]:
    annotations = read(paths)
    where = ", ".join(map(str, paths))
    benchmarks = {benchmark for benchmark, _ in source.benchmarks.values()}
    others = {part.benchmark for part in annotations.parts} - benchmarks
    if annotations.format not in source.formats or (benchmarks and others):
        found = f"{annotations.format}, of {', '.join(sorted(others)) or 'no benchmark'}"
        raise AnnotationError(
            f"{where}: expected {source.dataset} in the format {' or '.join(source.formats)}, with "
            f"its names of videos and questions; these are {found}. Put its own files there"
        )
    examples = annotations.examples
    split = _numbered(where, source, annotations.parts[0], named)
    asked = len(examples)
    if (folder / "frames").is_dir():
        examples = stored_names(folder / "frames", examples, annotations.aliases)
    own = _lacking(where, source, split, examples, asked)
    if annotations.set_aside and not own:
        own = _without_broken_rows(source, split, annotations)
    lacking = "; ".join(filter(None, [own, *_known(paths)]))
    if lacking and not allow_partial:
        aside = [f"{place}: {why}" for place, why in annotations.set_aside.items()][:_NAMED]
        rows = f" ({len(annotations.set_aside)} rows were set aside: {'; '.join(aside)})"
        raise AnnotationError(
            f"{where}: only {lacking}{rows if aside else ''}. Results on fewer are not comparable "
            f"with published ones: get the whole files and videos, or build {source.dataset}"
            "/partial (--allow_partial, of tfds build --config=partial), which says so in every "
            "result"
        )
    counts = source.published(split)
    facts = {
        "files": [path.name for path in paths],
        "questions": len(examples),
        "videos": len({example.video for example in examples}),
        "published": counts._asdict() if counts else None,
        "partial": lacking,
        "rows_set_aside": len(annotations.set_aside),
        "rows_without_video": len(annotations.without_video),
        "ids_renamed": len(annotations.renamed),
    }
    return split, Split(examples, facts)


def _numbered(where: str, source: TfdsDataset, part: Part, named: str) -> str:
    """The split of the rows of a file that is named as one of the split `named`."""
    if not source.numbered or splits.told_by(part) != splits.NUMBERS:
        return named
    split = numbered_split(source.dataset, [c.id for c in part.examples])
    if split not in source.files:
        raise AnnotationError(
            f"{where}: the questions are numbered {split}, which is no one split of "
            f"{source.dataset}; give the files of one split"
        )
    if split != named and part.format != "zero_shot":  # Video-ChatGPT's names are known to be wrong
        raise AnnotationError(
            f"{where}: named as {source.dataset}'s split {named}, but the questions' numbers are "
            f"those of {split}; published numbers differ in it. Name the file as its split is"
        )
    return split


def _lacking(
    where: str, source: TfdsDataset, split: str, examples: list[Example], asked: int
) -> str:
    """What the split lacks, in words; "" where it is whole. Raises where it has too much."""
    benchmark, its_split = source.benchmarks.get(split, ("", ""))
    counts = source.published(split)
    videos = len({example.video for example in examples})
    if counts and (asked > counts.questions or (counts.videos and videos > counts.videos)):
        other = other_split(benchmark, its_split, asked)
        raise AnnotationError(
            f"{where}: {asked:,} questions on {videos:,} videos, and {source.dataset}'s split "
            f"{split!r} has {counts.questions:,} on {counts.videos or '?'}"
            f"{f'; {other!r} has as many: name the files accordingly' if other else ''}"
        )
    lacking = shortfall(benchmark, its_split, len(examples), videos)
    if asked > len(examples):
        gone = f"{asked - len(examples):,} of {asked:,} are about videos that are not stored"
        lacking = f"{lacking}; {gone}" if lacking else f"{source.dataset} {split}: {gone}"
    return lacking


def _without_broken_rows(source: TfdsDataset, split: str, annotations: Annotations) -> str:
    """What broken rows leave of a split, in words; "" of one that is whole all the same."""
    if source.published(split):
        return ""
    rows = sum(part.rows for part in annotations.parts)
    return f"{source.dataset} {split}: {rows - len(annotations.set_aside):,} of {rows:,} rows"


def _known(paths: Sequence[Path]) -> list[str]:
    """What the preparation that wrote the files, if one did, recorded that they lack."""
    recorded = [read_json_or_empty(path.with_suffix(INFO)).get("partial", []) for path in paths]
    return [text for texts in recorded for text in texts]
