"""Benchmarks as `rvllm_jax.prepare` wrote them: questions, frames, and where both come from."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.data.annotations import published
from rvllm_jax.data.annotations.llava import INFO, read_info
from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.batches.source import open_data
from rvllm_jax.data.prepare.folder import UNUSABLE
from rvllm_jax.data.shapes.build import EMBEDDED, open_embedded
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FRAMES, StoreOptions
from rvllm_jax.evaluation.answers.questions import TEXT_GENERATION, EvaluationError
from rvllm_jax.types import Example

PUBLISHED = ("msvd_qa", "msrvtt_qa", "tgif_frameqa", "activitynet_qa", TEXT_GENERATION)
OWN = "own"
NAMES = (*PUBLISHED, EMBEDDED, OWN)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One split of a benchmark.

    `examples` can be asked; `unusable` cannot, by `reasons` {video: why}: their questions
    count as failed. `partial` says in words what the split lacks of its published counts.
    `published` is the number of questions that the split has, None where none is published.
    `train` is its training split, where one is prepared beside it.
    """

    name: str
    split: str
    folder: Path
    examples: list[Example]
    unusable: list[Example]
    reasons: Mapping[str, str]
    store: FrameStore
    partial: list[str]
    published: int | None
    train: list[Example]


def check_names(names: list[str]) -> None:
    """Raises EvaluationError for a name that is no benchmark, or that is given twice."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise EvaluationError(
            f"--benchmarks: {', '.join(unknown) or 'none'} is no benchmark known here; choose some "
            f"of {', '.join(NAMES)} ({OWN}: your own prepared folder)"
        )
    if len(set(names)) < len(names):
        raise EvaluationError(f"--benchmarks={','.join(names)}: names one twice")


def open_benchmark(
    name: str, data: str | Path, *, split: str = "", allow_partial: bool = False, command: str = ""
) -> Benchmark:
    """The benchmark in data/NAME, or of `own` data in data/own or `data` itself.

    split: which of the prepared ones; may be left out where there is one beside "train".
    command: the options of `prepare` that fit the model, for messages.

    Raises EvaluationError, AnnotationError or FrameStoreError before anything is computed.
    """
    folder = Path(data) / name
    if name == OWN and not folder.is_dir():
        folder = Path(data)
    split = _split(name, folder, split, command)
    info = read_info(folder / (split + INFO))
    if "partial" not in info or "annotations" not in info:
        raise EvaluationError(
            f"{folder / (split + INFO)}: not what rvllm_jax.prepare writes; prepare again"
        )
    _check_is(name, folder, split, info)
    if info["partial"] and not allow_partial:
        raise EvaluationError(
            f"{folder}: {'; '.join(info['partial'])}: scores on it are not comparable with "
            "published ones. Complete it, or give --allow_partial, which is recorded"
        )
    unusable, reasons = _unusable(folder, split, info)
    path = folder / "train.json"
    return Benchmark(
        name,
        split,
        folder,
        read_llava(folder / f"{split}.json"),
        unusable,
        reasons,
        FrameStore(folder / FRAMES),
        list(info["partial"]),
        _published(name, split),
        read_llava(path) if split != "train" and path.is_file() else [],
    )


def open_shapes(
    root: str | Path, options: StoreOptions, *, split: str = "", progress: Callable | None = None
) -> Benchmark:
    """The embedded dataset under `root`, rendered and stored there unless it is."""
    workers = os.cpu_count() or 1
    shown = progress and progress("render")
    videos, annotations = open_embedded(root, workers=workers, progress=shown)
    how = dict(max_bad=0.0, workers=workers, progress=progress)
    source = open_data(videos, annotations, options, root=root, **how)
    split = split or "test"
    if split not in source.splits:
        raise EvaluationError(
            f"--split={split}: {EMBEDDED} has the splits {', '.join(source.splits)}"
        )
    train = source.splits["train"] if split != "train" else []
    examples, folder = source.splits[split], Path(root) / EMBEDDED
    return Benchmark(EMBEDDED, split, folder, examples, [], {}, source.store, [], None, train)


def _split(name: str, folder: Path, split: str, command: str) -> str:
    splits = sorted(path.name.removesuffix(INFO) for path in folder.glob(f"*{INFO}"))
    if not splits:
        raise EvaluationError(
            f"{folder}: holds no prepared benchmark. Prepare {name} with: python -m "
            f"rvllm_jax.prepare --videos=VIDEOS --annotations=FILE[,FILE] --out={folder} "
            f"--split={'validation' if name in published.NUMBERED else 'test'}{command}"
        )
    if split and split not in splits:
        raise EvaluationError(
            f"{folder}: its prepared splits are {', '.join(splits)}; --split={split} is not one"
        )
    others = [other for other in splits if other != "train"] or splits
    if not split and len(others) > 1:
        raise EvaluationError(
            f"{folder}: has the splits {', '.join(others)}; say which by --split: published "
            "numbers differ in it"
        )
    return split or others[0]


def _check_is(name: str, folder: Path, split: str, info: Mapping[str, Any]) -> None:
    """That the folder holds this benchmark, and all of its parts."""
    if name == OWN:
        return
    parts = {part["benchmark"] for part in info["annotations"]}
    needed = {part for part in published.PUBLISHED if part.partition("/")[0] == name}
    wrong, lacking = parts - needed, needed - parts
    if wrong or lacking == needed:
        raise EvaluationError(
            f"{folder}: its split {split} was prepared from annotations of "
            f"{', '.join(sorted(part or 'no known benchmark' for part in parts))}, not of {name}; "
            f"prepare {name} there, or evaluate it as --benchmarks={OWN}"
        )
    if lacking:
        raise EvaluationError(
            f"{folder}: lacks {', '.join(sorted(lacking))}; prepare all files of {name} together: "
            "--annotations=generic_qa.json,temporal_qa.json,consistency_qa.json"
        )


def _unusable(folder: Path, split: str, info: Mapping[str, Any]):
    path = folder / (split + UNUSABLE)
    if path.is_file():
        return read_llava(path), dict(info["set_aside"])
    if info["missing"] or info["set_aside"]:
        raise EvaluationError(
            f"{path}: is not there, though {len(info['missing'])} videos are missing and "
            f"{len(info['set_aside'])} are set aside; their questions count as failed. Start "
            "rvllm_jax.prepare again as before, it writes the file"
        )
    return [], {}


def _published(name: str, split: str) -> int | None:
    parts = [p for p in published.PUBLISHED if p.partition("/")[0] == name]
    counts = [published.PUBLISHED[part].get(split) for part in parts]
    if not counts or None in counts:
        return None
    # A row of the consistency file is two questions.
    rows = zip(parts, counts, strict=True)
    return sum(count.questions * (1 + part.endswith("/consistency")) for part, count in rows)
