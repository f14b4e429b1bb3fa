"""Annotation files -> conversations: LLaVA's JSON, checked where it is read.

A file is a list of records such as

  {"id": "0001", "video": "panda.mp4", "conversations": [
    {"from": "human", "value": "<video>\\nWhat does the panda eat?"},
    {"from": "gpt", "value": "Bamboo."}]}

Two keys are ours and optional: "caption" of a record (text that says what the video shows) and
"type" of a human turn (the question's type, by which accuracy is reported).
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

VIDEO_MARK = "<video>"  # where LLaVA's prompts put the video
_NAMED = 10  # how many offenders a message names


class ConversationError(ValueError):
    """An annotation file that cannot be used as it is; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question about a video, without the video's mark, and its answer."""

    question: str
    answer: str
    kind: str = ""  # the question's type, or "" where the file gives none


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The turns about one video, in the file's order."""

    id: str
    video: str  # file name, relative to the folder of videos
    turns: tuple[Turn, ...]
    caption: str  # as given, else the answers joined by spaces


def read_llava(path: str | Path) -> list[Conversation]:
    """Reads a LLaVA or Video-LLaVA conversation file.

    The mark `<video>` may stand first or last in the first human turn, or be absent; "video" may
    be a string or a list of one. Surrounding white space of questions and answers is dropped.

    Raises:
        ConversationError: not UTF-8 or not JSON; a record with a missing key, an empty question
            or answer, turns that do not alternate human and gpt, a video outside the folder, or
            an id that an earlier record has. It names file, record and id.
    """
    records = _load(Path(path))
    conversations: list[Conversation] = []
    position_of: dict[str, int] = {}
    for position, record in enumerate(records):
        given = record.get("id") if isinstance(record, dict) else None
        where = f"{path}: record {position} (id {given!r})"
        conversation = _conversation(record, where)
        earlier = position_of.setdefault(conversation.id, position)
        if earlier != position:
            raise ConversationError(
                f"{where}: record {earlier} has the same id; give each record its own"
            )
        conversations.append(conversation)
    return conversations


def check_videos(conversations: Iterable[Conversation], folder: str | Path) -> None:
    """Raises `ConversationError` naming the conversations whose video is no file in `folder`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ConversationError(f"{folder}: no such folder of videos; correct its path")
    found: dict[str, bool] = {}  # many conversations share a video: look once
    missing = []
    for conversation in conversations:
        video = conversation.video
        if video not in found:
            found[video] = not _leaves_folder(video) and (folder / video).is_file()
        if not found[video]:
            missing.append(f"{conversation.id!r} names {video!r}")
    if missing:
        more = f", and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ConversationError(
            f"{folder}: the video of {len(missing)} conversations is not in this folder: "
            f"{'; '.join(missing[:_NAMED])}{more}. Add the files, correct the names (with their "
            "suffix), or remove the conversations"
        )


def _load(path: Path) -> list:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # a byte order mark is accepted
    except OSError as error:
        raise ConversationError(
            f"{path}: cannot be read ({error.strerror}); correct the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConversationError(
            f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversationError(
            f"{path}: not valid JSON ({error}); expected one list of records, as LLaVA writes it"
        ) from error
    if not isinstance(records, list) or not records:
        raise ConversationError(
            f"{path}: expected a list of at least one record, got "
            f"{'an empty list' if records == [] else type(records).__name__}"
        )
    return records


def _conversation(record: object, where: str) -> Conversation:
    if not isinstance(record, dict):
        raise ConversationError(f"{where}: expected an object, got {type(record).__name__}")
    absent = [key for key in ("id", "video", "conversations") if key not in record]
    if absent:
        raise ConversationError(f"{where}: has no {', '.join(map(repr, absent))}; add it")
    identity = record["id"]
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ConversationError(f"{where}: 'id' must be a string or a whole number")
    turns = _turns(record["conversations"], where)
    caption = record.get("caption") or " ".join(turn.answer for turn in turns)
    return Conversation(
        id=_text(str(identity), "'id'", where),
        video=_video(record["video"], where),
        turns=turns,
        caption=_text(caption, "'caption'", where),
    )


def _video(video: object, where: str) -> str:
    if isinstance(video, list) and len(video) == 1:
        (video,) = video
    if isinstance(video, list):
        raise ConversationError(
            f"{where}: names {len(video)} videos; a conversation is about exactly one"
        )
    _text(video, "'video'", where)  # checked, but not stripped: a file's name may hold spaces
    if _leaves_folder(video):
        raise ConversationError(
            f"{where}: video {video!r} is not inside the folder of videos; give a path relative "
            "to that folder, without '..'"
        )
    return video


def _leaves_folder(video: str) -> bool:
    """True for a path that is absolute, climbs, or that no file system takes."""
    path = PurePosixPath(video)
    return path.is_absolute() or ".." in path.parts or "\0" in video


def _turns(messages: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        count = len(messages) if isinstance(messages, list) else type(messages).__name__
        raise ConversationError(
            f"{where}: 'conversations' must be a list of pairs, a human message and gpt's answer; "
            f"got {count}"
        )
    for number, message in enumerate(messages):
        expected = ("human", "gpt")[number % 2]
        sender = message.get("from") if isinstance(message, dict) else message
        if sender != expected:
            raise ConversationError(
                f"{where}: message {number} must be from {expected!r}, got {sender!r}; human and "
                "gpt take turns, human first"
            )
    return tuple(
        _turn(messages[number], messages[number + 1], number, where)
        for number in range(0, len(messages), 2)
    )


def _turn(human: dict, gpt: dict, number: int, where: str) -> Turn:
    question = _text(human.get("value"), f"question (message {number})", where)
    if number == 0:
        if question.startswith(VIDEO_MARK):
            question = question[len(VIDEO_MARK) :]
        elif question.endswith(VIDEO_MARK):
            question = question[: -len(VIDEO_MARK)]
        question = _text(question, f"question (message {number}) beside {VIDEO_MARK}", where)
    if VIDEO_MARK in question:
        raise ConversationError(
            f"{where}: message {number} has {VIDEO_MARK} where no video can go; it may stand once, "
            "first or last in the first human message"
        )
    answer = _text(gpt.get("value"), f"answer (message {number + 1})", where)
    kind = human.get("type", "")
    return Turn(question, answer, _text(kind, "'type'", where) if kind != "" else "")


def _text(value: object, what: str, where: str) -> str:
    """`value` stripped, where it is a text that is not empty and that UTF-8 can hold."""
    if not isinstance(value, str) or not value.strip():
        got = "an empty one" if isinstance(value, str) else repr(value)
        raise ConversationError(
            f"{where}: {what} must be a text, got {got}; fill it in or remove the record"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConversationError(
            f"{where}: {what} holds half of a surrogate pair; correct the escape \\uD8xx in it"
        ) from None
    return value.strip()
