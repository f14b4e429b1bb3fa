"""Reading annotation files of any known format, with an account of every row."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from rvllm_jax.data.annotations.example import AnnotationError, Example, with_own_id
from rvllm_jax.data.annotations.formats import AnnotationFile, load, name_of
from rvllm_jax.data.annotations.identify import benchmark_of
from rvllm_jax.data.annotations.rows import Row, makes_ids, rows


@dataclasses.dataclass(frozen=True)
class Part:
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
        renamed: id that a row has in common with an earlier, different one -> the id it got.
        duplicates: (video, question) asked more than once -> the ids that ask it.
        aliases: other names of videos, both ways, from MSVD's youtube_mapping.txt.
    """

    format: str
    parts: tuple[Part, ...]
    set_aside: dict[str, str]
    without_video: dict[str, str]
    renamed: dict[str, str]
    duplicates: dict[tuple[str, str], list[str]]
    aliases: dict[str, str]

    @property
    def examples(self) -> list[Example]:
        return [example for part in self.parts for example in part.examples]


def read(paths: Sequence[str | Path], *, format: str | None = None) -> Annotations:
    """Reads annotation files of one or several formats, recognised by what they hold.

    A benchmark's row becomes an example whose id is the question's and whose turns' kind is
    the benchmark's type. Where rows have no id, it is made of video or kind and position, with "#2"
    behind it in a second such file. A youtube_mapping.txt among `paths`, or beside an original
    MSVD-QA file, gives MSVD's videos their other names.

    Args:
        paths: the files; a pair (test_q.json and test_a.json) in either order.
        format: what they must be, one of `FORMATS`; None: what they are.

    Returns:
        All rows, used or not: a row that cannot be used is set aside with the reason; a LLaVA
        record that repeats another one's id is set aside where it repeats all of it, else renamed.

    Raises:
        AnnotationError: files that cannot be read, are of no known format, or do not belong
            together; a question id or a file that comes twice; no row that can be used.
    """
    sources, aliases = load(paths, format)
    set_aside: dict[str, str] = {}
    without_video: dict[str, str] = {}
    renamed: dict[str, str] = {}
    known: dict[str, Example] = {}
    place_of: dict[str, str] = {}
    parts = []
    for number, source in enumerate(sources):
        used = []
        found = list(rows(source))
        if makes_ids(source):
            found = _under_own_ids(found, source, sources[:number], known)
        for where, row in found:
            if isinstance(row, str):
                without_video[where] = row
            elif isinstance(row, AnnotationError):
                set_aside[where] = str(row).removeprefix(f"{where}: ")
            else:
                used += _owned(where, row, source.format, known, place_of, renamed, set_aside)
        if not used:
            first = next(iter(set_aside.items()), ("", "none is about a video"))
            raise AnnotationError(
                f"{', '.join(map(str, source.paths))}: none of its {len(source.records[0])} rows "
                f"can be used; the first: {' '.join(first)}"
            )
        names = tuple(map(str, source.paths))
        benchmark = benchmark_of(source, used)
        parts.append(Part(names, source.format, benchmark, len(source.records[0]), used))
    both_ways = aliases | {number: name for name, number in aliases.items()}
    asked = _duplicates(parts)
    return Annotations(
        name_of(sources), tuple(parts), set_aside, without_video, renamed, asked, both_ways
    )


def _under_own_ids(
    found: list[Row],
    source: AnnotationFile,
    earlier: Sequence[AnnotationFile],
    known: dict[str, Example],
) -> list[Row]:
    """Rows whose ids are made of their positions, under such as no file before has.

    Raises `AnnotationError` where a file before holds the same rows.
    """
    for other in earlier:
        if (other.format, other.records) == (source.format, source.records):
            raise AnnotationError(
                f"{source.paths[0]}: holds the same rows as {other.paths[0]}; a file is given once"
            )
    ids = {row.id for _, row in found if isinstance(row, Example)}
    if ids.isdisjoint(known):
        return found
    marks = (f"#{number}" for number in itertools.count(2))
    mark = next(mark for mark in marks if known.keys().isdisjoint(id + mark for id in ids))
    return [
        (where, dataclasses.replace(row, id=row.id + mark))
        if isinstance(row, Example)
        else (where, row)
        for where, row in found
    ]


def _owned(
    where: str,
    row: Example,
    format: str,
    known: dict[str, Example],
    place_of: dict[str, str],
    renamed: dict[str, str],
    set_aside: dict[str, str],
) -> list[Example]:
    """The row under an id that no other one has; nothing where it repeats an earlier one."""
    earlier = place_of.get(row.id)
    if earlier is not None and format != "llava":
        raise AnnotationError(
            f"{where}: its id is {row.id!r}, as that of {earlier}; every question has its own, and "
            "a file is given once"
        )
    place_of.setdefault(row.id, where)
    own = with_own_id(row, known)
    if own is None:
        set_aside[where] = f"repeats {earlier}"
        return []
    if own.id != row.id:
        renamed[where] = own.id
    return [own]


def _duplicates(parts: Sequence[Part]) -> dict[tuple[str, str], list[str]]:
    asked: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        for example in part.examples:
            for turn in example.turns:
                key = example.video, turn.question.casefold()
                asked.setdefault(key, []).append(example.id)
    return {key: ids for key, ids in asked.items() if len(ids) > 1}
