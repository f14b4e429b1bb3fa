"""Reading annotation files of any known format, with an account of every row."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from absl import logging

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.formats import FORMATS, GENERATIVE, make_example
from rvllm_jax.data.annotations.identify import benchmark_of, kind_of
from rvllm_jax.data.annotations.llava import lacks_video
from rvllm_jax.data.annotations.recognise import AnnotationFile, load, name_of
from rvllm_jax.types import Example

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
    parts: list[AnnotationPart]
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
    aliases |= {number: name for name, number in aliases.items()}
    annotations = Annotations(name_of(files), [], {}, {}, {}, aliases)
    known: dict[str, tuple[str, Example]] = {}  # by id: where it stands, and what
    for number, file in enumerate(files):
        examples = []
        for place, row in _with_new_ids(list(_rows(file)), file, files[:number], known.keys()):
            if isinstance(row, str):
                annotations.without_video[place] = row
            elif isinstance(row, Example):
                examples += _under_its_id(place, row, file.format, known, annotations)
            elif strict:
                raise AnnotationError(f"{place}: {row}") from row
            else:
                annotations.set_aside[place] = str(row)
        if not examples:
            reasons = [f"the first: {place} {why}" for place, why in annotations.set_aside.items()]
            reasons.append("none has a 'video'; add it")
            raise AnnotationError(
                f"{', '.join(map(str, file.paths))}: none of its {len(file.records)} rows can be "
                f"used; {reasons[0]}"
            )
        names, benchmark = tuple(map(str, file.paths)), benchmark_of(file, examples)
        part = AnnotationPart(names, file.format, benchmark, len(file.records), examples)
        annotations.parts.append(part)
    return annotations


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


def _under_its_id(
    place: str,
    row: Example,
    format: str,
    known: dict[str, tuple[str, Example]],
    annotations: Annotations,
) -> list[Example]:
    """The row, under its id, or under "ID#2", "ID#3" where others have that; [] if it repeats one.

    Adds it to `known`. Only LLaVA's files have several records of one id.
    """
    id, number = row.id, 1
    while id in known:
        earlier, example = known[id]
        if format != "llava":
            raise AnnotationError(
                f"{place}: its id is {id!r}, as that of {earlier}; every question has its own, and "
                "a file is given once"
            )
        if dataclasses.replace(example, id=row.id) == row:
            annotations.set_aside[place] = f"repeats {earlier}"
            return []
        number += 1
        id = f"{row.id}#{number}"
    if id != row.id:
        annotations.renamed[place] = id
    known[id] = place, dataclasses.replace(row, id=id)
    return [known[id][1]]


def _with_new_ids(
    rows: list[Row], file: AnnotationFile, earlier: Sequence[AnnotationFile], known: Set[str]
) -> list[Row]:
    """Rows whose ids are made of their positions, under such as are not `known`.

    Raises `AnnotationError` where an earlier file holds the same rows.
    """
    format = FORMATS[file.format]
    if not format.made_id or any(
        isinstance(row, dict) and row.get(format.id) not in (None, "") for row in file.records
    ):
        return rows
    for other in earlier:
        if (other.format, other.records) == (file.format, file.records):
            raise AnnotationError(
                f"{file.paths[0]}: holds the same rows as {other.paths[0]}; a file is given once"
            )
    ids = {row.id for _, row in rows if isinstance(row, Example)}
    marks = itertools.chain([""], (f"#{number}" for number in itertools.count(2)))
    mark = next(mark for mark in marks if known.isdisjoint(id + mark for id in ids))
    return [
        (place, dataclasses.replace(row, id=row.id + mark) if isinstance(row, Example) else row)
        for place, row in rows
    ]


def _rows(file: AnnotationFile) -> Iterator[Row]:
    """Every row of a file, or of a pair."""
    kind = kind_of(file) if file.format in GENERATIVE else ""
    key = "question_id" if FORMATS[file.format].paired else "id"
    names = " with ".join(map(str, file.paths))
    for position, record in enumerate(file.records):
        id = record.get(key) if isinstance(record, dict) else None
        place = f"{names}: record {position} ({key} {id!r})"
        if file.format == "llava" and (instead := lacks_video(record)):
            yield place, instead
            continue
        try:
            yield place, make_example(file.format, record, position, kind)
        except AnnotationError as error:
            yield place, error
