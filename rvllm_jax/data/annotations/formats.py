"""The formats of annotation files, as one table: a new one is a row of `FORMATS` and its function.

A row says by which keys records of the format are recognised (recognise.py does it), and how an
example is made of one. LLaVA's own format, in which this project writes too, is in llava.py.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    checked_id,
    checked_text,
    checked_video,
)
from rvllm_jax.data.annotations.llava import MARKS, llava_example
from rvllm_jax.data.annotations.video_names import readable
from rvllm_jax.types import Example, Turn


class AnnotationRecord(NamedTuple):
    """One row of a file; its methods raise `AnnotationError`, which begins with `place`.

    kind: what its questions ask for, where the row itself does not say (identify.kind_of).
    """

    fields: dict
    place: str
    position: int
    kind: str = ""

    def text(self, key: str) -> str:
        return checked_text(self.fields.get(key), f"{key!r}", self.place)

    def question(self, key: str) -> str:
        question = self.text(key)
        if any(mark in question for mark in MARKS):
            raise AnnotationError(f"{self.place}: {key!r} holds {' or '.join(MARKS)}: {question!r}")
        return question

    def identity(self, key: str) -> str:
        return checked_id(self.fields.get(key), f"{key!r}", self.place)

    def video(self, key: str) -> str:
        return checked_video(self.fields.get(key), self.place)

    def type(self, key: str) -> str:
        """The type of the question, which rows need not have."""
        value = self.fields.get(key)
        return "" if value is None or value == "" else checked_id(value, "'type'", self.place)


@dataclasses.dataclass(frozen=True)
class Format:
    """How records of a format are recognised, and made examples of.

    Attributes:
        keys: those of its records, by which a file is recognised.
        answers: keys of the records of a second file, where questions and answers stand apart.
        make: one record, or a question's and its answer's -> an example; raises AnnotationError.
        id: the key of a record's id; "": it has none, and the id is made of its position.
        shown: how messages describe its records.
        table: no JSON, but a table with tabs and a head.
    """

    keys: set[str]
    make: Callable[..., Example]
    shown: str
    id: str = ""
    answers: set[str] = dataclasses.field(default_factory=set)
    table: bool = False

    def makes_ids(self, records: Iterable[object]) -> bool:
        """Whether the ids of these records are made of their positions."""
        return not self.id or not any(
            isinstance(row, dict) and row.get(self.id) not in (None, "") for row in records
        )


def _llava(record: AnnotationRecord) -> Example:
    return llava_example(record.fields, record.place)


def _video_instruct(record: AnnotationRecord) -> Example:
    turn = Turn(record.question("q"), record.text("a"))
    video = record.video("video_id")
    return _example(f"{readable(video)}:{record.position}", video, [turn])


def _generative(record: AnnotationRecord) -> Example:
    answer, kind, asked = record.text("A"), record.kind, ["Q"]
    if "Q" not in record.fields:
        asked, kind = ["Q1", "Q2"], "consistency"
    turns = [Turn(record.question(key), answer, kind) for key in asked]
    return _example(f"{kind}:{record.position}", record.video("video_name"), turns)


def _pair(question: AnnotationRecord, answer: AnnotationRecord) -> Example:
    turn = Turn(question.question("question"), answer.text("answer"), answer.type("type"))
    video = question.video("video_name")
    return _example(question.identity("question_id"), video, [turn])


def _original(record: AnnotationRecord) -> Example:
    """MSVD-QA counts its videos from vid1, MSRVTT-QA, which has categories, from video0."""
    turn = Turn(record.question("question"), record.text("answer"), record.type("category_id"))
    number = record.identity("video_id")
    start = "video" if "category_id" in record.fields else "vid"
    video = f"{start}{number}" if number.isdigit() else number
    return _example(record.identity("id"), checked_video(video, record.place), [turn])


def _tgif(record: AnnotationRecord) -> Example:
    row, place = record.fields, record.place
    values = [value for key, value in row.items() if key is not None]
    fields = sum(value is not None for value in values) + len(row.get(None, ()))
    if fields != len(values):  # what stands behind a tab too many or too few is of another column
        raise AnnotationError(
            f"{place}: has {fields} fields between tabs, and the table's head has {len(values)}"
        )
    turn = Turn(record.question("question"), record.text("answer"), record.type("type"))
    identity = checked_id(row.get("vid_id") or f"row {record.position}", "'vid_id'", place)
    caption = (row.get("description") or "").strip()
    return _example(identity, record.video("gif_name"), [turn], caption)


def _example(identity: str, video: str, turns: list[Turn], caption: str = "") -> Example:
    caption = caption or " ".join(dict.fromkeys(turn.answer for turn in turns))
    return Example(identity, video, tuple(turns), caption)


_QUESTIONS, _ANSWERS = {"video_name", "question", "question_id"}, {"answer", "question_id"}
_APART = "(video_name, question, question_id; answer, question_id)"

# The first whose keys fit decides.
FORMATS: dict[str, Format] = {
    "llava": Format(
        {"conversations"}, _llava, "LLaVA's records (id, video, conversations)", id="id"
    ),
    "video_instruct": Format(
        {"q", "a", "video_id"}, _video_instruct, "VideoInstruct's (q, a, video_id)"
    ),
    "consistency": Format(
        {"video_name", "Q1", "Q2", "A"}, _generative, "consistency rows (video_name, Q1, Q2, A)"
    ),
    "generative": Format(
        {"video_name", "Q", "A"}, _generative, "generative rows (video_name, Q, A)"
    ),
    # Both have the same keys; the ids tell them apart (recognise.py).
    "zero_shot": Format(
        _QUESTIONS, _pair, f"Video-ChatGPT's pair {_APART}", id="question_id", answers=_ANSWERS
    ),
    "activitynet": Format(
        _QUESTIONS, _pair, f"ActivityNet-QA's pair {_APART}", id="question_id", answers=_ANSWERS
    ),
    "msvd_msrvtt_original": Format(
        {"video_id", "question", "answer", "id"},
        _original,
        "the original MSVD-QA's or MSRVTT-QA's (id, video_id, question, answer)",
        id="id",
    ),
    "tgif": Format(
        {"gif_name", "question", "answer"},
        _tgif,
        "TGIF-QA's table with tabs (gif_name, question, answer)",
        id="vid_id",
        table=True,
    ),
}
GENERATIVE = ("generative", "consistency")  # the files of one benchmark
PAIRED = tuple(name for name, format in FORMATS.items() if format.answers)
