"""Which format annotation files are in, by what they hold and not by what they are called."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    checked_id,
    decode_text,
    load_records,
)
from rvllm_jax.data.annotations.formats import FORMATS, GENERATIVE, PAIRED
from rvllm_jax.data.annotations.video_names import stem_of

MAPPING = "youtube_mapping.txt"  # MSVD's: a line "-4wsuPCjDBc_5_15 vid1" for each video
_QUESTIONS, _ANSWERS = "questions", "answers"  # of a pair
_HALVES = {
    _QUESTIONS: ("video_name", "question", "question_id"),
    _ANSWERS: ("answer", "question_id"),
}
_ORIGINAL = "msvd_msrvtt_original"
_EXPECTED = f"expected {', '.join(format.shown for format in FORMATS.values())}, or {MAPPING}"
_LOOKED_AT = 100  # records; the first ones may be broken
_NAMED = 5  # how many ids a message names


class AnnotationFile(NamedTuple):
    """What is read together: one file, or the two of a pair (questions, answers).

    records: those of the file; of a pair, the questions' with what the answers' add.
    """

    format: str
    paths: tuple[Path, ...]
    records: list


def load(
    paths: Sequence[str | Path], format: str | None = None
) -> tuple[list[AnnotationFile], dict[str, str]]:
    """Loads the files and finds their formats; returns also what a youtube_mapping.txt maps.

    Raises:
        AnnotationError: a file that cannot be read, is of no known format or not of `format`;
            a questions' file without its answers', or the reverse, or those of others.
    """
    if format is not None and format not in FORMATS:
        raise AnnotationError(f"format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    loaded: list[AnnotationFile] = []
    aliases: dict[str, str] = {}
    for path in map(Path, paths):
        content_is, content = _load(path, format)
        if content_is == MAPPING:
            aliases |= content
        else:
            loaded.append(AnnotationFile(content_is, (path,), content))
    files = [file for file in loaded if file.format in FORMATS]
    files += _pairs(*([file for file in loaded if file.format == half] for half in _HALVES))
    if not files:
        raise AnnotationError(f"no annotations among {_named(paths)}: {_EXPECTED}")
    for file in files:
        both = {format, file.format}
        if format is not None and len(both) > 1 and both not in (set(PAIRED), set(GENERATIVE)):
            raise AnnotationError(
                f"{_named(file.paths)}: has the keys of the format {file.format!r}, and "
                f"{format!r} was named; leave the format out, or correct it"
            )
    return files, aliases or _mapping_of_questions(files)


def name_of(files: Sequence[AnnotationFile]) -> str:
    """The format of annotation files: one of `FORMATS`, or several joined by "+"."""
    return "+".join(dict.fromkeys(file.format for file in files))


def most(values: Iterable[bool]) -> bool:
    """Whether more than half of the values are true; not of none."""
    values = list(values)
    return 2 * sum(values) > len(values)


def _load(path: Path, format: str | None) -> tuple[str, list | dict[str, str]]:
    """What a file holds: a format's records, one half of a pair, or `MAPPING`; and its content."""
    text = decode_text(path)
    if text.lstrip()[:1] not in ("[", "{"):
        header = text.partition("\n")[0].rstrip("\r").split("\t")
        if table_is := _fitting(header, table=True):
            # TGIF-QA writes quotation marks as they are, so that none may open a quoted field.
            table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
            try:
                return table_is, list(table)
            except csv.Error as error:
                raise AnnotationError(f"{path}: line {table.line_num}: {error}") from error
        if mapping := _mapping(path, text):
            return MAPPING, mapping
        if path.suffix != ".json":
            raise AnnotationError(f"{path}: neither JSON nor a known table; {_EXPECTED}")
    records = load_records(path)
    for record in records[:_LOOKED_AT]:
        if isinstance(record, dict) and (fitting := _fitting(record, table=False)):
            return fitting, records
    if format is not None and format not in PAIRED and not FORMATS[format].table:
        return format, records  # as the caller says; the reader names what lacks
    keys = sorted(records[0]) if isinstance(records[0], dict) else type(records[0]).__name__
    raise AnnotationError(f"{path}: of no known format, its first record has {keys}; {_EXPECTED}")


def _fitting(keys: Iterable[str], *, table: bool) -> str:
    """The format of records with these keys, or the half of a pair; "" where there is none."""
    whole = {n: f.keys for n, f in FORMATS.items() if f.table == table and not f.paired}
    known = whole if table else whole | _HALVES
    return next((name for name, needed in known.items() if set(needed) <= set(keys)), "")


def _mapping_of_questions(files: Sequence[AnnotationFile]) -> dict[str, str]:
    """What MSVD-QA's list of names maps, where it lies in the folder of its questions."""
    for file in files:
        path = file.paths[0].with_name(MAPPING)
        if file.format == _ORIGINAL and path.is_file():
            mapping = _mapping(path, decode_text(path))
            if not mapping:
                raise AnnotationError(
                    f"{path}: lies beside {file.paths[0]} and is no list of lines such as "
                    "'-4wsuPCjDBc_5_15 vid1'; give the published file, or take it away"
                )
            return mapping
    return {}


def _mapping(path: Path, text: str) -> dict[str, str]:
    """YouTube's name -> "vidN"; nothing where `text` is no such list."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    fits = [len(line) == 2 and bool(re.fullmatch(r"vid\d+", line[1])) for _, line in lines]
    if not most(fits):
        return {}
    seen: dict[str, int] = {}
    for (number, line), fit in zip(lines, fits, strict=True):
        if not fit:
            raise AnnotationError(
                f"{path}: line {number} is {' '.join(line)[:80]!r}, and no line such as "
                "'-4wsuPCjDBc_5_15 vid1'; correct it"
            )
        for name in line:
            if name in seen:
                raise AnnotationError(
                    f"{path}: line {number} names {name!r}, which line {seen[name]} has named; "
                    "each video has one pair of names. Remove the wrong line"
                )
        seen |= dict.fromkeys(line, number)
    return dict(line for _, line in lines)


def _pairs(
    questions: list[AnnotationFile], answers: list[AnnotationFile]
) -> Iterator[AnnotationFile]:
    """Questions with their answers, in the order given; several pairs where there are several."""
    if len(questions) != len(answers):
        more, other = max((questions, _ANSWERS), (answers, _QUESTIONS), key=lambda f: len(f[0]))
        raise AnnotationError(
            f"{_named(path for file in more for path in file.paths)}: {len(questions)} files of "
            f"questions and {len(answers)} of answers were given; name the file of {other} too, "
            "such as test_q.json,test_a.json"
        )
    for pair in zip(questions, answers, strict=True):
        paths, by_id = [file.paths[0] for file in pair], [*map(_by_question_id, pair)]
        for here, there in ((0, 1), (1, 0)):
            lone = [identity for identity in by_id[here] if identity not in by_id[there]]
            if lone:
                raise AnnotationError(
                    f"{paths[there]}: has no row for {len(lone)} of the {len(by_id[here])} "
                    f"question_ids of {paths[here]}: {', '.join(lone[:_NAMED])}; give the two "
                    "files that belong together"
                )
        records = [
            question | {key: by_id[1][identity].get(key) for key in ("answer", "type")}
            for identity, question in by_id[0].items()
        ]
        yield AnnotationFile(_paired_format(records), tuple(paths), records)


def _by_question_id(file: AnnotationFile) -> dict[str, dict]:
    by_id: dict[str, dict] = {}
    for position, record in enumerate(file.records):
        place = f"{file.paths[0]}: record {position}"
        if not isinstance(record, dict) or "question_id" not in record:
            raise AnnotationError(f"{place}: has no 'question_id'; add it")
        try:
            identity = checked_id(record["question_id"], "'question_id'")
        except AnnotationError as error:
            raise AnnotationError(f"{place}: {error}") from error
        if identity in by_id:
            earlier = f"{file.paths[0]}: record {list(by_id).index(identity)}"
            raise AnnotationError(
                f"{place}: question_id {identity!r} is that of {earlier} too; every question has "
                "its own"
            )
        by_id[identity] = record
    return by_id


def _paired_format(records: list[dict]) -> str:
    """ActivityNet-QA's own ids are v_NAME_NUMBER, where its names have no v_."""

    def fits(row: dict) -> bool:
        name = PurePosixPath(stem_of(str(row["video_name"]))).name
        names = "|".join(map(re.escape, {name, name.removeprefix("v_")}))
        return re.fullmatch(rf"v_({names})_\d+", str(row["question_id"])) is not None

    rows = [record for record in records[:_LOOKED_AT] if "video_name" in record]
    return "activitynet" if most(map(fits, rows)) else "zero_shot"


def _named(paths: Iterable[str | Path]) -> str:
    return ", ".join(map(str, paths))
