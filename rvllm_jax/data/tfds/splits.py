"""The splits of a dataset, read from the annotation files of a folder and checked.

What is published about a split is checked here: numbers measured on fewer questions than others
used, or on another split under the same name, are not comparable with theirs.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.llava import INFO, read_info
from rvllm_jax.data.annotations.published import numbered_split, shortfall
from rvllm_jax.data.annotations.read import AnnotationPart, Annotations, read
from rvllm_jax.data.annotations.split import NUMBERS, contradiction, evidence
from rvllm_jax.data.annotations.video_names import VideoFilesError, describe_ambiguous, match
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.tfds.datasets import TfdsDataset
from rvllm_jax.types import Example

_NAMED = 5  # how many offenders a message names


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as it was read; `facts` is what metadata.json records of it."""

    examples: list[Example]
    facts: dict


def read_splits(folder: Path, dataset: TfdsDataset, *, allow_partial: bool) -> dict[str, Split]:
    """Reads the splits of which `folder` holds the files, and of a split all or nothing.

    Raises:
        AnnotationError: no files; files of another format, dataset or split; fewer questions or
            videos than are published, or broken rows where nothing is published, unless
            `allow_partial`; more than are published; two files of one split.
        FrameStoreError: a folder of frames that holds no finished store.
        VideoFilesError: a video's name that fits several videos of the store.
    """
    splits: dict[str, Split] = {}
    for named, alternatives in dataset.files.items():
        for names in alternatives:
            paths = [folder / name for name in names]
            if not any(path.is_file() for path in paths):
                continue
            name, split = _read(folder, paths, dataset, named, allow_partial)
            if name in splits:
                raise AnnotationError(
                    f"{folder}: {', '.join(names)} and {', '.join(splits[name].facts['files'])} "
                    f"hold the same split of {dataset.name}, {name!r}; leave one of them here"
                )
            splits[name] = split
    if not splits:
        choices = [" + ".join(names) for several in dataset.files.values() for names in several]
        raise AnnotationError(
            f"{folder}: holds no annotations of {dataset.name}; expected one or more of "
            f"{', '.join(choices)}"
        )
    return {name: splits[name] for name in dataset.files if name in splits}


def _read(
    folder: Path, paths: Sequence[Path], dataset: TfdsDataset, named: str, allow_partial: bool
) -> tuple[str, Split]:
    """The split that files named as those of `named` hold, and what is in it."""
    annotations = read(paths)
    where = ", ".join(map(str, paths))
    _check_dataset(where, dataset, annotations)
    split = _split_of(dataset, annotations.parts[0], named)
    _, its_split = dataset.benchmarks.get(split, ("", ""))
    if wrong := "; ".join(filter(None, (contradiction(p, its_split) for p in annotations.parts))):
        raise AnnotationError(
            f"{where}: named as {dataset.name}'s split {split}, but {wrong}; published numbers "
            "differ in it. Name the files as their split is, and give those of one split"
        )
    examples = annotations.examples
    if (folder / "frames").is_dir():
        examples = _stored(folder / "frames", examples, annotations.aliases)
    lacking = "; ".join(_lacking(dataset, split, annotations, examples, paths))
    if lacking and not allow_partial:
        aside = [f"{place}: {why}" for place, why in annotations.set_aside.items()][:_NAMED]
        rows = f" ({len(annotations.set_aside)} rows were set aside: {'; '.join(aside)})"
        raise AnnotationError(
            f"{where}: only {lacking}{rows if aside else ''}. Results on fewer are not comparable "
            f"with published ones: get the whole files and videos, or build {dataset.name}"
            "/partial (--allow_partial, of tfds build --config=partial), which says so in every "
            "result"
        )
    counts = dataset.published(split)
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


def _check_dataset(where: str, dataset: TfdsDataset, annotations: Annotations) -> None:
    benchmarks = {benchmark for benchmark, _ in dataset.benchmarks.values()}
    others = {part.benchmark for part in annotations.parts} - benchmarks
    if annotations.format not in dataset.formats or (benchmarks and others):
        given = f"{annotations.format}, of {', '.join(sorted(others)) or 'no benchmark'}"
        raise AnnotationError(
            f"{where}: expected {dataset.name} in the format {' or '.join(dataset.formats)}, with "
            f"its names of videos and questions; these are {given}. Put its own files there"
        )


def _split_of(dataset: TfdsDataset, part: AnnotationPart, named: str) -> str:
    """The split of a pair by its questions' numbers, where they run through train, validation and
    test: Video-ChatGPT's names are known to be wrong.

    Other files are of the split that they are `named` as, or are refused.
    """
    if part.format != "zero_shot" or evidence(part) != NUMBERS:
        return named
    split = numbered_split(dataset.name, [example.id for example in part.examples])
    return split if split in dataset.files else named


def _stored(folder: Path, examples: Sequence[Example], aliases: Mapping[str, str]) -> list[Example]:
    """The examples whose videos the store in `folder` holds, under the store's names."""
    name_of, _, ambiguous = match(
        FrameStore(folder).entries, {example.video for example in examples}, aliases
    )
    for video, names in ambiguous.items():
        raise VideoFilesError(f"{folder}: {video!r} {describe_ambiguous(names)}")
    return [
        dataclasses.replace(example, video=name_of[example.video])
        for example in examples
        if example.video in name_of
    ]


def _lacking(
    dataset: TfdsDataset,
    split: str,
    annotations: Annotations,
    examples: Sequence[Example],
    paths: Sequence[Path],
) -> Iterator[str]:
    """What `examples` lack of the split, in words; nothing where it is whole."""
    benchmark, its_split = dataset.benchmarks.get(split, ("", ""))
    start = f"{dataset.name} {split}"
    lacking = shortfall(
        benchmark, its_split, len(examples), len({example.video for example in examples})
    )
    asked = len(annotations.examples)
    if asked > len(examples):
        gone = f"{asked - len(examples):,} of {asked:,} are about videos that are not stored"
        lacking = f"{lacking}; {gone}" if lacking else f"{start}: {gone}"
    elif annotations.set_aside and not lacking and not dataset.published(split):
        rows = sum(part.rows for part in annotations.parts)
        lacking = f"{start}: {rows - len(annotations.set_aside):,} of {rows:,} rows"
    if lacking:
        yield lacking
    for path in paths:  # what the preparation that wrote the files, if one did, recorded
        yield from read_info(path.with_suffix(INFO)).get("partial", [])
