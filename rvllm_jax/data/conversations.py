"""Conversations about videos, and LLaVA's JSON of them, checked where it is read.

A file is a list of records such as

  {"id": "0001", "video": "panda.mp4", "conversations": [
    {"from": "human", "value": "<video>\\nWhat does the panda eat?"},
    {"from": "gpt", "value": "Bamboo."}]}

Two keys are ours and optional: "caption" of a record (text that says what the video shows) and
"type" of a human turn (the question's type, by which accuracy is reported). The other formats are
read in data/annotations/.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from absl import logging

VIDEO_MARK = "<video>"  # where LLaVA's prompts put the video
MARKS = (VIDEO_MARK, "<image>")  # files made for image models put the second before a video too
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

    The mark `<video>` (or `<image>`, as some files have it) may stand first or last in the first
    human turn, or be absent; "video" may be a string or a list of one. Surrounding white space of
    questions and answers is dropped. Records without a video, as mixed files have them, are left
    out, and a warning counts them.

    Raises:
        ConversationError: not UTF-8 or not JSON; a record with a missing key, an empty question
            or answer, turns that do not alternate human and gpt, a video outside the folder, or
            an id that an earlier record has; no record with a video. It names file, record and id.
    """
    records = load_records(path)
    conversations: list[Conversation] = []
    position_of: dict[str, int] = {}
    for position, record in enumerate(records):
        if lacks_video(record):
            continue
        where = place(path, position, record)
        conversation = llava_conversation(record, where)
        earlier = position_of.setdefault(conversation.id, position)
        if earlier != position:
            raise ConversationError(
                f"{where}: record {earlier} has the same id; give each record its own"
            )
        conversations.append(conversation)
    if not conversations:
        raise ConversationError(f"{path}: none of its {len(records)} records has a 'video'; add it")
    if len(conversations) < len(records):
        logging.warning(
            "%s: %d of %d records have no video and are left out",
            path, len(records) - len(conversations), len(records),
        )  # fmt: skip
    return conversations


def write_llava(conversations: Iterable[Conversation]) -> bytes:
    """The bytes of a file that `read_llava` reads as these conversations."""
    records = []
    for conversation in conversations:
        messages = []
        for number, turn in enumerate(conversation.turns):
            mark = "" if number else f"{VIDEO_MARK}\n"
            human = {"from": "human", "value": mark + turn.question}
            messages += [human | ({"type": turn.kind} if turn.kind else {})]
            messages += [{"from": "gpt", "value": turn.answer}]
        record = {"id": conversation.id, "video": conversation.video, "conversations": messages}
        record["caption"] = conversation.caption
        plain = json.dumps(record, ensure_ascii=False)
        if plain != plain.encode(errors="replace").decode():  # a video's name that is no UTF-8
            plain = json.dumps(record)
        records.append(plain)
    return ("[\n" + ",\n".join(records) + "\n]\n").encode()


def place(path: str | Path, position: int, record: object) -> str:
    """How messages name a record of a file."""
    given = record.get("id") if isinstance(record, dict) else None
    return f"{path}: record {position} (id {given!r})"


def lacks_video(record: object) -> str:
    """What a record is about instead of a video: "a picture" or "text alone"; "" where it has one.

    Only a record that has turns counts: any other one is broken, and is for the reader to refuse.
    """
    if not isinstance(record, dict) or "conversations" not in record or record.get("video"):
        return ""
    return "a picture" if record.get("image") else "text alone"


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
            found[video] = not leaves_folder(video) and (folder / video).is_file()
        if not found[video]:
            missing.append(f"{conversation.id!r} names {video!r}")
    if missing:
        more = f", and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ConversationError(
            f"{folder}: the video of {len(missing)} conversations is not in this folder: "
            f"{'; '.join(missing[:_NAMED])}{more}. Add the files, correct the names (with their "
            "suffix), or remove the conversations"
        )


def decode_text(path: str | Path) -> str:
    """The text of a UTF-8 file; raises `ConversationError`."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")  # a byte order mark is accepted
    except OSError as error:
        raise ConversationError(
            f"{path}: cannot be read ({error.strerror}); correct the path"
        ) from error
    except UnicodeDecodeError as error:
        raise ConversationError(
            f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def load_records(path: str | Path) -> list:
    """The list that a JSON file holds, of at least one record; raises `ConversationError`."""
    text = decode_text(path)
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


def llava_conversation(record: object, where: str) -> Conversation:
    """One record of a LLaVA file; raises `ConversationError` that begins with `where`."""
    if not isinstance(record, dict):
        raise ConversationError(f"{where}: expected an object, got {type(record).__name__}")
    absent = [key for key in ("id", "video", "conversations") if key not in record]
    if absent:
        raise ConversationError(f"{where}: has no {', '.join(map(repr, absent))}; add it")
    turns = _turns(record["conversations"], where)
    caption = record.get("caption") or " ".join(turn.answer for turn in turns)
    return Conversation(
        id=checked_id(record["id"], "'id'", where),
        video=checked_video(record["video"], where),
        turns=turns,
        caption=checked_text(caption, "'caption'", where),
    )


def checked_id(value: object, what: str, where: str) -> str:
    """An id as a text: files give it as one, or as a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ConversationError(f"{where}: {what} must be a string or a whole number")
    return checked_text(str(value), what, where)


def checked_video(video: object, where: str) -> str:
    """The name of a video: a string, or a list of one; refused where it leaves the folder."""
    if isinstance(video, list) and len(video) == 1:
        (video,) = video
    if isinstance(video, list):
        raise ConversationError(
            f"{where}: names {len(video)} videos; a conversation is about exactly one"
        )
    # Checked, but not stripped: a file's name may hold spaces.
    checked_text(readable(video) if isinstance(video, str) else video, "'video'", where)
    if leaves_folder(video):
        raise ConversationError(
            f"{where}: video {video!r} is not inside the folder of videos; give a path relative "
            "to that folder, without '..'"
        )
    return video


def readable(name: str) -> str:
    """A file's name as a text: its bytes that are no UTF-8, \\udc80 to \\udcff, become "?"."""
    return re.sub("[\udc80-\udcff]", "?", name)


def leaves_folder(video: str) -> bool:
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
    question = checked_text(human.get("value"), f"question (message {number})", where)
    if number == 0:
        question = _without_mark(question)
        question = checked_text(question, f"question (message {number}) beside {VIDEO_MARK}", where)
    for mark in MARKS:
        if mark in question:
            raise ConversationError(
                f"{where}: message {number} has {mark} where no video can go; it may stand once, "
                "first or last in the first human message"
            )
    answer = checked_text(gpt.get("value"), f"answer (message {number + 1})", where)
    kind = human.get("type", "")
    return Turn(question, answer, checked_text(kind, "'type'", where) if kind != "" else "")


def _without_mark(question: str) -> str:
    for mark in MARKS:
        if question.startswith(mark):
            return question[len(mark) :]
        if question.endswith(mark):
            return question[: -len(mark)]
    return question


def checked_text(value: object, what: str, where: str) -> str:
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
