"""One row of each format -> an example."""

from collections.abc import Iterator

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    Example,
    Turn,
    checked_id,
    checked_text,
    checked_video,
    place,
    readable,
)
from rvllm_jax.data.annotations.formats import AnnotationFile
from rvllm_jax.data.annotations.identify import kind_of
from rvllm_jax.data.annotations.llava import MARKS, lacks_video, llava_example

_NAMED = 5  # how many ids a message names

Row = tuple[str, Example | AnnotationError | str]  # where; a text: what it is instead


def rows(source: AnnotationFile) -> Iterator[Row]:
    """Every row of a source, with where it stands: an example, or why it is none.

    Raises `AnnotationError` where the files do not belong together.
    """
    if len(source.paths) == 2:
        yield from _paired(source)
        return
    (path,), (records,) = source.paths, source.records
    make, kind = _MAKERS[source.format], kind_of(source)
    for position, record in enumerate(records):
        where = place(path, position, record)
        if source.format == "llava" and (instead := lacks_video(record)):
            yield where, instead
            continue
        try:
            if not isinstance(record, dict):
                raise AnnotationError(f"{where}: expected an object, got {record!r:.50}")
            yield where, make(record, position, where, kind)
        except AnnotationError as error:
            yield where, error


def makes_ids(source: AnnotationFile) -> bool:
    """Whether the rows have no ids of their own, so that theirs are made of their positions."""
    if source.format == "tgif":
        return not any(row.get("vid_id") for row in source.records[0])
    return source.format in ("video_instruct", "generative", "consistency")


def _paired(source: AnnotationFile) -> Iterator[Row]:
    questions, answers = (
        _by_question_id(path, records)
        for path, records in zip(source.paths, source.records, strict=True)
    )
    for own, other, path in ((questions, answers, 1), (answers, questions, 0)):
        lone = [identity for identity in own if identity not in other]
        if lone:
            raise AnnotationError(
                f"{source.paths[path]}: has no row for {len(lone)} of the {len(own)} question_ids "
                f"of {source.paths[1 - path]}: {', '.join(lone[:_NAMED])}; give the two files that "
                "belong together"
            )
    for identity, (where, question) in questions.items():
        answer_where, answer = answers[identity]
        try:
            turn = Turn(
                _question(question, "question", where),
                checked_text(answer.get("answer"), "'answer'", answer_where),
                _kind(answer.get("type"), answer_where),
            )
            video = checked_video(question.get("video_name"), where)
            yield where, _example(identity, video, [turn])
        except AnnotationError as error:
            yield where, error


def _by_question_id(path, records: list) -> dict[str, tuple[str, dict]]:
    found: dict[str, tuple[str, dict]] = {}
    for position, record in enumerate(records):
        where = f"{path}: record {position}"
        if not isinstance(record, dict) or "question_id" not in record:
            raise AnnotationError(f"{where}: has no 'question_id'; add it")
        identity = checked_id(record["question_id"], "'question_id'", where)
        if identity in found:
            raise AnnotationError(
                f"{where}: question_id {identity!r} is that of {found[identity][0]} too; every "
                "question has its own"
            )
        found[identity] = f"{where} (question_id {identity!r})", record
    return found


def _example(identity: str, video: str, turns: list[Turn], caption="") -> Example:
    caption = caption or " ".join(dict.fromkeys(turn.answer for turn in turns))
    return Example(identity, video, tuple(turns), caption)


def _question(row: dict, key: str, where: str) -> str:
    question = checked_text(row.get(key), f"{key!r}", where)
    if any(mark in question for mark in MARKS):
        raise AnnotationError(f"{where}: {key!r} holds {' or '.join(MARKS)}: {question!r}")
    return question


def _kind(value: object, where: str) -> str:
    return "" if value is None or value == "" else checked_id(value, "'type'", where)


def _llava(row: dict, position: int, where: str, kind: str) -> Example:
    return llava_example(row, where)


def _video_instruct(row: dict, position: int, where: str, kind: str) -> Example:
    turn = Turn(_question(row, "q", where), checked_text(row.get("a"), "'a'", where))
    video = checked_video(row.get("video_id"), where)
    return _example(f"{readable(video)}:{position}", video, [turn])


def _generative(row: dict, position: int, where: str, kind: str) -> Example:
    answer = checked_text(row.get("A"), "'A'", where)
    asked = ["Q"]
    if "Q" not in row:
        asked, kind = ["Q1", "Q2"], "consistency"
    turns = [Turn(_question(row, key, where), answer, kind) for key in asked]
    return _example(f"{kind}:{position}", checked_video(row.get("video_name"), where), turns)


def _original(row: dict, position: int, where: str, kind: str) -> Example:
    """MSVD-QA counts its videos from vid1, MSRVTT-QA, which has categories, from video0."""
    msrvtt = "category_id" in row
    turn = Turn(
        _question(row, "question", where),
        checked_text(row.get("answer"), "'answer'", where),
        _kind(row.get("category_id"), where),
    )
    number = checked_id(row.get("video_id"), "'video_id'", where)
    video = f"{'video' if msrvtt else 'vid'}{number}" if number.isdigit() else number
    return _example(checked_id(row.get("id"), "'id'", where), checked_video(video, where), [turn])


def _tgif(row: dict, position: int, where: str, kind: str) -> Example:
    values = [value for key, value in row.items() if key is not None]
    fields = sum(value is not None for value in values) + len(row.get(None, ()))
    if fields != len(values):  # what stands behind a tab too many or too few is of another column
        raise AnnotationError(
            f"{where}: has {fields} fields between tabs, and the table's head has {len(values)}"
        )
    turn = Turn(
        _question(row, "question", where),
        checked_text(row.get("answer"), "'answer'", where),
        _kind(row.get("type"), where),
    )
    identity = checked_id(row.get("vid_id") or f"row {position}", "'vid_id'", where)
    caption = (row.get("description") or "").strip()
    return _example(identity, checked_video(row.get("gif_name"), where), [turn], caption)


_MAKERS = {
    "llava": _llava,
    "video_instruct": _video_instruct,
    "generative": _generative,
    "consistency": _generative,
    "msvd_msrvtt_original": _original,
    "tgif": _tgif,
}
