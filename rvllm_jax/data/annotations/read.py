"""Reading annotation files of any known format, with an account of every row."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    add_unique,
    checked_id,
    describe_place,
)
from rvllm_jax.data.annotations.formats import FORMATS, GENERATIVE, AnnotationRecord
from rvllm_jax.data.annotations.identify import benchmark_of, kind_of
from rvllm_jax.data.annotations.llava import lacks_video
from rvllm_jax.data.annotations.recognise import AnnotationFile, load, name_of
from rvllm_jax.types import Example

_NAMED = 5  # how many ids a message names

# Where a row stands, and its example, or why it is none; a text: what it is about, if no video.
Row = tuple[str, Example | AnnotationError | str]


@dataclasses.dataclass(frozen=True)
class AnnotationPart:
    """One file, or one pair of files, of the annotations."""

    paths: tuple[str, ...]
    format: str
    benchmark: str  # whose published counts apply; "" where none is known
    rows: int  # of the file, whether or not they are used
    examples: list[Example]

    @property
    def videos(self) -> int:
        """How many videos its examples are about."""
        return len({example.video for example in self.examples})


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What annotation files hold, row by row.

    Attributes:
        format: one of `FORMATS`, or several joined by "+".
        parts: by file; `examples` are those of all of them, in order.
        set_aside: where a row stands -> why it is not used.
        without_video: where a row of a mixed LLaVA file stands -> what it is about instead.
        renamed: where a row stands whose id an earlier, different one has -> the id it got.
        aliases: other names of videos, both ways, from MSVD's youtube_mapping.txt.
    """

    format: str
    parts: tuple[AnnotationPart, ...]
    set_aside: dict[str, str]
    without_video: dict[str, str]
    renamed: dict[str, str]
    aliases: dict[str, str]

    @property
    def examples(self) -> list[Example]:
        return [example for part in self.parts for example in part.examples]


def read(
    paths: Sequence[str | Path], *, format: str | None = None, strict: bool = False
) -> Annotations:
    """Reads annotation files of one or several formats, recognised by what they hold.

    A benchmark's row becomes an example whose id is the question's and whose turns' kind is
    the benchmark's type. Where rows have no id, it is made of video or kind and position, with "#2"
    behind it in a second such file. A youtube_mapping.txt among `paths`, or beside an original
    MSVD-QA file, gives MSVD's videos their other names.

    Args:
        paths: the files; a pair (test_q.json and test_a.json) in either order.
        format: what they must be, one of `FORMATS`; None: what they are.
        strict: a row that cannot be used is an error, unless it repeats another one.

    Returns:
        All rows, used or not: a row that cannot be used is set aside with the reason; a LLaVA
        record that repeats another one's id is set aside where it repeats all of it, else renamed.

    Raises:
        AnnotationError: files that cannot be read, are of no known format, or do not belong
            together; a question id or a file that comes twice; no row that can be used.
    """
    files, aliases = load(paths, format)
    account = _Account(strict)
    parts = []
    for number, file in enumerate(files):
        rows = list(_rows(file))
        if FORMATS[file.format].makes_ids(file.records[0]):
            rows = account.with_new_ids(rows, file, files[:number])
        examples = account.take(rows, file.format)
        if not examples:
            reasons = [f"the first: {place} {why}" for place, why in account.set_aside.items()]
            reasons.append("none has a 'video'; add it")
            raise AnnotationError(
                f"{', '.join(map(str, file.paths))}: none of its {len(file.records[0])} rows "
                f"can be used; {reasons[0]}"
            )
        names = tuple(map(str, file.paths))
        benchmark = benchmark_of(file, examples)
        parts.append(AnnotationPart(names, file.format, benchmark, len(file.records[0]), examples))
    return Annotations(
        name_of(files),
        tuple(parts),
        account.set_aside,
        account.without_video,
        account.renamed,
        aliases | {number: name for name, number in aliases.items()},
    )


def read_llava(path: str | Path) -> list[Example]:
    """Reads a LLaVA or Video-LLaVA file, of which every record must be right.

    Records without a video, as mixed files have them, and those that repeat another one whole are
    left out, and a warning counts them. Raises AnnotationError, which names file, record and id.
    """
    annotations = read([path], format="llava", strict=True)
    (part,) = annotations.parts
    for rows, what in (
        (annotations.without_video, "have no video"),
        (annotations.set_aside, "repeat another one whole"),
    ):
        if rows:
            logging.warning(
                "%s: %d of %d records %s and are left out", path, len(rows), part.rows, what
            )
    return annotations.examples


class _Account:
    """What became of every row, file after file, and which ids are taken."""

    def __init__(self, strict: bool):
        self._strict = strict
        self.set_aside: dict[str, str] = {}
        self.without_video: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self._known: dict[str, Example] = {}
        self._first: dict[str, str] = {}  # an id -> where the first row with it stands

    def take(self, rows: Sequence[Row], format: str) -> list[Example]:
        """The examples among the rows, under ids that no other one has."""
        examples = []
        for place, row in rows:
            if isinstance(row, str):
                self.without_video[place] = row
            elif isinstance(row, AnnotationError):
                if self._strict:
                    raise row
                self.set_aside[place] = str(row).removeprefix(f"{place}: ")
            elif example := self._add(place, row, format):
                examples.append(example)
        return examples

    def _add(self, place: str, row: Example, format: str) -> Example | None:
        earlier = self._first.get(row.id)
        if earlier is not None and format != "llava":
            raise AnnotationError(
                f"{place}: its id is {row.id!r}, as that of {earlier}; every question has its own, "
                "and a file is given once"
            )
        self._first.setdefault(row.id, place)
        example = add_unique(row, self._known)
        if example is None:
            self.set_aside[place] = f"repeats {earlier}"
        elif example.id != row.id:
            self.renamed[place] = example.id
        return example

    def with_new_ids(
        self, rows: list[Row], file: AnnotationFile, earlier: Sequence[AnnotationFile]
    ) -> list[Row]:
        """Rows whose ids are made of their positions, under such as no file before has.

        Raises `AnnotationError` where a file before holds the same rows.
        """
        for other in earlier:
            if (other.format, other.records) == (file.format, file.records):
                raise AnnotationError(
                    f"{file.paths[0]}: holds the same rows as {other.paths[0]}; a file is given "
                    "once"
                )
        ids = {row.id for _, row in rows if isinstance(row, Example)}
        if ids.isdisjoint(self._known):
            return rows
        marks = (f"#{number}" for number in itertools.count(2))
        mark = next(mark for mark in marks if self._known.keys().isdisjoint(i + mark for i in ids))
        return [
            (place, dataclasses.replace(row, id=row.id + mark) if isinstance(row, Example) else row)
            for place, row in rows
        ]


def _rows(file: AnnotationFile) -> Iterator[Row]:
    """Every row of a file, or of a pair; raises `AnnotationError` where two belong apart."""
    format = FORMATS[file.format]
    if format.answers:
        yield from _rows_of_pair(file)
        return
    (path,), (records,) = file.paths, file.records
    kind = kind_of(file) if file.format in GENERATIVE else ""
    for position, fields in enumerate(records):
        place = describe_place(path, position, fields)
        if file.format == "llava" and (instead := lacks_video(fields)):
            yield place, instead
            continue
        try:
            if not isinstance(fields, dict):
                raise AnnotationError(f"{place}: expected an object, got {fields!r:.50}")
            yield place, format.make(AnnotationRecord(fields, place, position, kind))
        except AnnotationError as error:
            yield place, error


def _rows_of_pair(file: AnnotationFile) -> Iterator[Row]:
    questions, answers = map(_by_question_id, file.paths, file.records)
    for here, there, path in ((questions, answers, 1), (answers, questions, 0)):
        lone = [identity for identity in here if identity not in there]
        if lone:
            raise AnnotationError(
                f"{file.paths[path]}: has no row for {len(lone)} of the {len(here)} question_ids "
                f"of {file.paths[1 - path]}: {', '.join(lone[:_NAMED])}; give the two files that "
                "belong together"
            )
    for identity, question in questions.items():
        try:
            yield question.place, FORMATS[file.format].make(question, answers[identity])
        except AnnotationError as error:
            yield question.place, error


def _by_question_id(path: Path, records: list) -> dict[str, AnnotationRecord]:
    by_id: dict[str, AnnotationRecord] = {}
    for position, fields in enumerate(records):
        place = f"{path}: record {position}"
        if not isinstance(fields, dict) or "question_id" not in fields:
            raise AnnotationError(f"{place}: has no 'question_id'; add it")
        identity = checked_id(fields["question_id"], "'question_id'", place)
        if identity in by_id:
            earlier = f"{path}: record {by_id[identity].position}"
            raise AnnotationError(
                f"{place}: question_id {identity!r} is that of {earlier} too; every question has "
                "its own"
            )
        by_id[identity] = AnnotationRecord(fields, f"{place} (question_id {identity!r})", position)
    return by_id
