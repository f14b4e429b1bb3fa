"""The formats of annotation files, as one table: a new one is a row of `FORMATS`.

A row says by which keys records of the format are recognised (recognise.py does it), and what an
example takes from which key. LLaVA's own format, in which this project writes too, is in llava.py.
"""

import dataclasses

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    checked_id,
    checked_text,
    checked_video,
)
from rvllm_jax.data.annotations.llava import MARKS, llava_example
from rvllm_jax.data.annotations.video_names import readable
from rvllm_jax.types import Example, Turn


@dataclasses.dataclass(frozen=True)
class Format:
    """How records of a format are recognised, and what their keys hold.

    Attributes:
        shown: how messages describe its records.
        keys: of a record's video, its answer and its questions, in this order; a file that has
            them is of the format. LLaVA's turns have one key for all.
        id: the key of a record's id.
        made_id: the id of a record that has none; "": one without is refused.
        kind, caption: the keys of a question's type and of what the video shows; a record need not
            have them.
        paired: questions and answers stand in two files, which recognise.py joins.
        table: no JSON, but a table with tabs and a head.
    """

    shown: str
    keys: tuple[str, ...]
    id: str | None = None
    made_id: str = ""
    kind: str | None = None
    caption: str | None = None
    paired: bool = False
    table: bool = False


_PAIR = dict(keys=("video_name", "answer", "question"), id="question_id", kind="type", paired=True)
_APART = "(video_name, question, question_id; answer, question_id)"

# The first whose keys fit decides.
FORMATS: dict[str, Format] = {
    "llava": Format("LLaVA's records (id, video, conversations)", ("conversations",), id="id"),
    "video_instruct": Format(
        "VideoInstruct's (q, a, video_id)", ("video_id", "a", "q"), made_id="{video}:{position}"
    ),
    "consistency": Format(
        "consistency rows (video_name, Q1, Q2, A)",
        ("video_name", "A", "Q1", "Q2"),
        made_id="{kind}:{position}",
    ),
    "generative": Format(
        "generative rows (video_name, Q, A)", ("video_name", "A", "Q"), made_id="{kind}:{position}"
    ),
    # Both have the same keys; the ids tell them apart (recognise.py).
    "zero_shot": Format(f"Video-ChatGPT's pair {_APART}", **_PAIR),
    "activitynet": Format(f"ActivityNet-QA's pair {_APART}", **_PAIR),
    "msvd_msrvtt_original": Format(
        "the original MSVD-QA's or MSRVTT-QA's (id, video_id, question, answer)",
        ("video_id", "answer", "question"),
        id="id",
        kind="category_id",
    ),
    "tgif": Format(
        "TGIF-QA's table with tabs (gif_name, question, answer)",
        ("gif_name", "answer", "question"),
        id="vid_id",
        made_id="row {position}",
        kind="type",
        caption="description",
        table=True,
    ),
}
GENERATIVE = ("generative", "consistency")  # the files of one benchmark
PAIRED = tuple(name for name, format in FORMATS.items() if format.paired)


def make_example(name: str, record: object, position: int, kind: str) -> Example:
    """The example of the record at `position` of a file of a format; raises `AnnotationError`.

    kind: what its questions ask for, where the record itself does not say (identify.kind_of).
    """
    if not isinstance(record, dict):
        raise AnnotationError(f"expected an object, got {record!r:.50}")
    if name == "llava":
        return llava_example(record)
    if name in GENERATIVE:  # a file may have records of both
        name, kind = ("generative", kind) if "Q" in record else ("consistency", "consistency")
    format = FORMATS[name]
    if format.table:
        _check_fields(record)
    video_key, answer_key, *question_keys = format.keys
    questions = [_question(record, key) for key in question_keys]
    answer = checked_text(record.get(answer_key), repr(answer_key))
    if record.get(format.kind) not in (None, ""):
        kind = checked_id(record[format.kind], "'type'")
    video = record.get(video_key)
    if name == "msvd_msrvtt_original":
        video = _numbered_video(checked_id(video, repr(video_key)), record)
    video = checked_video(video)
    id = record.get(format.id)
    if format.made_id and id in (None, ""):
        id = format.made_id.format(video=readable(video), kind=kind, position=position)
    else:
        id = checked_id(id, repr(format.id))
    caption = (record.get(format.caption) or "").strip() or answer
    return Example(id, video, tuple(Turn(q, answer, kind) for q in questions), caption)


def _question(record: dict, key: str) -> str:
    question = checked_text(record.get(key), repr(key))
    if any(mark in question for mark in MARKS):
        raise AnnotationError(f"{key!r} holds {' or '.join(MARKS)}: {question!r}")
    return question


def _numbered_video(number: str, record: dict) -> str:
    """MSVD-QA counts its videos from vid1, MSRVTT-QA, which has categories, from video0."""
    start = "video" if "category_id" in record else "vid"
    return f"{start}{number}" if number.isdigit() else number


def _check_fields(row: dict) -> None:
    """What stands behind a tab too many or too few is of another column."""
    values = [value for key, value in row.items() if key is not None]
    fields = sum(value is not None for value in values) + len(row.get(None, ()))
    if fields != len(values):
        raise AnnotationError(
            f"has {fields} fields between tabs, and the table's head has {len(values)}"
        )
