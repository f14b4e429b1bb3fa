"""Which format annotation files are in, by what they hold and not by what they are called."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rvllm_jax.data.annotations.example import AnnotationError, decode_text, load_records
from rvllm_jax.data.prepare.find import stem_of

FORMATS = (
    "llava", "video_instruct", "zero_shot", "generative", "consistency", "msvd_msrvtt_original",
    "tgif", "activitynet",
)  # fmt: skip
MAPPING = "youtube_mapping.txt"  # MSVD's: a line "-4wsuPCjDBc_5_15 vid1" for each video
_GENERATIVE = ("generative", "consistency")  # the files of one benchmark
_PAIRED = ("zero_shot", "activitynet")  # formats of two files, questions and answers
_QUESTIONS, _ANSWERS = "questions", "answers"  # of a pair

# The keys of a format's records; the first that fits decides.
_KEYS = {
    "llava": {"conversations"},
    "video_instruct": {"q", "a", "video_id"},
    "consistency": {"video_name", "Q1", "Q2", "A"},
    "generative": {"video_name", "Q", "A"},
    _QUESTIONS: {"video_name", "question", "question_id"},
    "msvd_msrvtt_original": {"video_id", "question", "answer", "id"},
    _ANSWERS: {"answer", "question_id"},
}
_TGIF_KEYS = {"gif_name", "question", "answer"}
_EXPECTED = (
    "expected LLaVA's records (id, video, conversations), VideoInstruct's (q, a, video_id), "
    "Video-ChatGPT's or ActivityNet-QA's pair (video_name, question, question_id; answer, "
    "question_id), generative rows (video_name, Q, A) or (video_name, Q1, Q2, A), the original "
    "MSVD-QA's or MSRVTT-QA's (id, video_id, question, answer), TGIF-QA's table with tabs "
    f"(gif_name, question, answer), or {MAPPING}"
)
_LOOKED_AT = 100  # records; the first ones may be broken


class AnnotationFile(NamedTuple):
    """What is read together: one file, or the two of a pair (questions, answers)."""

    format: str
    paths: tuple[Path, ...]
    records: tuple[list, ...]


def load(
    paths: Sequence[str | Path], format: str | None = None
) -> tuple[list[AnnotationFile], dict[str, str]]:
    """Loads the files and finds their formats; returns also what a youtube_mapping.txt maps.

    Raises:
        AnnotationError: a file that cannot be read, is of no known format or not of `format`;
            a questions' file without its answers', or the reverse.
    """
    if format is not None and format not in FORMATS:
        raise AnnotationError(f"format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    sources: list[AnnotationFile] = []
    halves: dict[str, list[tuple[Path, list]]] = {_QUESTIONS: [], _ANSWERS: []}
    aliases: dict[str, str] = {}
    for path in map(Path, paths):
        found, content = _load(path, format)
        if found == MAPPING:
            aliases |= content
        elif found in halves:
            halves[found].append((path, content))
        else:
            sources.append(AnnotationFile(found, (path,), (content,)))
    sources += _pairs(halves)
    if not sources:
        raise AnnotationError(f"no annotations among {_named(paths)}: {_EXPECTED}")
    for source in sources:
        both = {format, source.format}
        if format is not None and len(both) > 1 and both not in (set(_PAIRED), set(_GENERATIVE)):
            raise AnnotationError(
                f"{_named(source.paths)}: has the keys of the format {source.format!r}, and "
                f"{format!r} was named; leave the format out, or correct it"
            )
    return sources, aliases or _mapping_beside(sources)


def _mapping_beside(sources: Sequence[AnnotationFile]) -> dict[str, str]:
    """What MSVD-QA's own list of names maps, where it lies beside its questions."""
    for source in sources:
        path = source.paths[0].with_name(MAPPING)
        if source.format == "msvd_msrvtt_original" and path.is_file():
            mapping = _mapping(path, decode_text(path))
            if not mapping:
                raise AnnotationError(
                    f"{path}: lies beside {source.paths[0]} and is no list of lines such as "
                    "'-4wsuPCjDBc_5_15 vid1'; give the published file, or take it away"
                )
            return mapping
    return {}


def recognise(paths: Sequence[str | Path]) -> str:
    """The format of annotation files: one of `FORMATS`, or several joined by "+".

    Raises `AnnotationError` as `load` does.
    """
    return name_of(load(paths)[0])


def name_of(sources: Sequence[AnnotationFile]) -> str:
    return "+".join(dict.fromkeys(source.format for source in sources))


def _load(path: Path, format: str | None) -> tuple[str, list | dict[str, str]]:
    text = decode_text(path)
    if text.lstrip()[:1] not in ("[", "{"):
        header = text.partition("\n")[0].rstrip("\r").split("\t")
        if _TGIF_KEYS <= set(header):
            # TGIF-QA writes quotation marks as they are, so that none may open a quoted field.
            table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
            try:
                return "tgif", list(table)
            except csv.Error as error:
                raise AnnotationError(f"{path}: line {table.line_num}: {error}") from error
        mapping = _mapping(path, text)
        if mapping:
            return MAPPING, mapping
        if path.suffix != ".json":
            raise AnnotationError(f"{path}: neither JSON nor a known table; {_EXPECTED}")
    records = load_records(path)
    for record in records[:_LOOKED_AT]:
        for name, keys in _KEYS.items():
            if isinstance(record, dict) and keys <= record.keys():
                return name, records
    if format is not None and format not in (*_PAIRED, "tgif"):
        return format, records  # as the caller says; the reader names what lacks
    keys = sorted(records[0]) if isinstance(records[0], dict) else type(records[0]).__name__
    raise AnnotationError(f"{path}: of no known format, its first record has {keys}; {_EXPECTED}")


def _mapping(path: Path, text: str) -> dict[str, str]:
    """YouTube's name -> "vidN"; nothing where `text` is no such list."""
    rows = [line.split() for line in text.splitlines()]
    fits = [len(row) == 2 and bool(re.fullmatch(r"vid\d+", row[1])) for row in rows]
    if not most(fit for fit, row in zip(fits, rows, strict=True) if row):
        return {}
    seen: dict[str, int] = {}
    for number, (row, fit) in enumerate(zip(rows, fits, strict=True), 1):
        if row and not fit:
            raise AnnotationError(
                f"{path}: line {number} is {' '.join(row)[:80]!r}, and no line such as "
                "'-4wsuPCjDBc_5_15 vid1'; correct it"
            )
        for name in row:
            if name in seen:
                raise AnnotationError(
                    f"{path}: line {number} names {name!r}, which line {seen[name]} has named; "
                    "each video has one pair of names. Remove the wrong line"
                )
        seen |= dict.fromkeys(row, number)
    return dict(row for row in rows if row)


def _pairs(halves: dict[str, list[tuple[Path, list]]]) -> list[AnnotationFile]:
    """Questions and answers, in the order given; several pairs where there are several."""
    questions, answers = halves[_QUESTIONS], halves[_ANSWERS]
    if len(questions) != len(answers):
        lone, other = (questions, "answers") if len(questions) > len(answers) else (
            answers, "questions",
        )  # fmt: skip
        raise AnnotationError(
            f"{_named(path for path, _ in lone)}: {len(questions)} files of questions and "
            f"{len(answers)} of answers were given; name the file of {other} too, such as "
            "test_q.json,test_a.json"
        )
    return [
        AnnotationFile(_paired_format(q), (q_path, a_path), (q, a))
        for (q_path, q), (a_path, a) in zip(questions, answers, strict=True)
    ]


def _paired_format(questions: list) -> str:
    """ActivityNet-QA's own ids are v_NAME_NUMBER, where its names have no v_."""

    def fits(row: dict) -> bool:
        name = PurePosixPath(stem_of(str(row["video_name"]))).name
        names = "|".join(map(re.escape, {name, name.removeprefix("v_")}))
        return re.fullmatch(rf"v_({names})_\d+", str(row["question_id"])) is not None

    rows = [
        row
        for row in questions[:_LOOKED_AT]
        if isinstance(row, dict) and _KEYS[_QUESTIONS] <= row.keys()
    ]
    return "activitynet" if most(map(fits, rows)) else "zero_shot"


def most(values: Iterable[bool]) -> bool:
    """Whether more than half of the values are true; not of none."""
    values = list(values)
    return 2 * sum(values) > len(values)


def _named(paths) -> str:
    return ", ".join(map(str, paths))
