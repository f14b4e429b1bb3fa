"""LLaVA's JSON of examples about videos, checked where it is read.

A file is a list of records such as

  {"id": "0001", "video": "panda.mp4", "conversations": [
    {"from": "human", "value": "<video>\\nWhat does the panda eat?"},
    {"from": "gpt", "value": "Bamboo."}]}

Two keys are ours and optional: "caption" of a record (text that says what the video shows) and
"type" of a human turn (the question's type, by which accuracy is reported).
"""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

from absl import logging

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    Example,
    Turn,
    add_unique,
    checked_id,
    checked_text,
    checked_video,
    describe_place,
    load_records,
)

VIDEO_MARK = "<video>"  # where LLaVA's prompts put the video
MARKS = (VIDEO_MARK, "<image>")  # files made for image models put the second before a video too
SENDERS = (("human", "user"), ("gpt", "assistant"))  # of a question, of an answer
_ALL = "all"  # what results call the questions of all types


def read_llava(path: str | Path) -> list[Example]:
    """Reads a LLaVA or Video-LLaVA file.

    The mark `<video>` (or `<image>`, as some files have it) may stand once in the first human
    turn, from where the video is moved first, or be absent; "video" may be a string or a list of
    one. Surrounding white space of questions and answers is dropped. An id that several records
    have, as a video's that stands for its own, is numbered. Records without a video, as mixed files
    have them, and those that repeat another one whole are left out, and a warning counts them.

    Raises:
        AnnotationError: not UTF-8 or not JSON; a record with a missing key, an empty question
            or answer, turns that do not alternate human and gpt, or a video outside the folder; no
            record with a video. It names file, record and id.
    """
    records = load_records(path)
    known: dict[str, Example] = {}
    bare = repeated = 0
    for position, record in enumerate(records):
        if lacks_video(record):
            bare += 1
            continue
        example = llava_example(record, describe_place(path, position, record))
        repeated += add_unique(example, known) is None
    if not known:
        raise AnnotationError(f"{path}: none of its {len(records)} records has a 'video'; add it")
    for count, what in ((bare, "have no video"), (repeated, "repeat another one whole")):
        if count:
            logging.warning(
                "%s: %d of %d records %s and are left out", path, count, len(records), what
            )
    return list(known.values())


def write_llava(examples: Iterable[Example]) -> bytes:
    """The bytes of a file that `read_llava` reads as these examples."""
    records = []
    for example in examples:
        messages = []
        for number, turn in enumerate(example.turns):
            mark = "" if number else f"{VIDEO_MARK}\n"
            human = {"from": "human", "value": mark + turn.question}
            messages += [human | ({"type": turn.kind} if turn.kind else {})]
            messages += [{"from": "gpt", "value": turn.answer}]
        record = {"id": example.id, "video": example.video, "conversations": messages}
        record["caption"] = example.caption
        plain = json.dumps(record, ensure_ascii=False)
        if plain != plain.encode(errors="replace").decode():  # a video's name that is no UTF-8
            plain = json.dumps(record)
        records.append(plain)
    return ("[\n" + ",\n".join(records) + "\n]\n").encode()


def lacks_video(record: object) -> str:
    """What a record is about instead of a video: "a picture" or "text alone"; "" where it has one.

    Only a record that has turns counts: any other one is broken, and is for the reader to refuse;
    so is one that asks about a video and does not name it, or names it under a misspelt key.
    """
    if not isinstance(record, dict) or "conversations" not in record or record.get("video"):
        return ""
    if record.get("image"):
        return "a picture"
    messages = record["conversations"] if isinstance(record["conversations"], list) else []
    texts = [str(message.get("value")) for message in messages if isinstance(message, dict)]
    asks = _misspelt(record) or any(VIDEO_MARK in text for text in texts)
    return "" if asks else "text alone"


def _misspelt(record: dict) -> str:
    """The key that may be meant for "video"; "" where there is none."""
    named = [key for key, value in record.items() if value and isinstance(value, str | list)]
    keys = {key.lower(): key for key in named if key != "video"}
    alike = difflib.get_close_matches("video", keys, 1, 0.75)
    return keys[alike[0]] if alike else ""


def llava_example(record: object, where: str) -> Example:
    """One record of a LLaVA file; raises `AnnotationError` that begins with `where`."""
    if not isinstance(record, dict):
        raise AnnotationError(f"{where}: expected an object, got {type(record).__name__}")
    absent = [key for key in ("id", "video", "conversations") if key not in record]
    if absent:
        meant = _misspelt(record) if "video" in absent else ""
        hint = f" ({meant!r} may be meant for 'video')" if meant else ""
        raise AnnotationError(f"{where}: has no {', '.join(map(repr, absent))}; add it{hint}")
    turns = _turns(record["conversations"], where)
    caption = record.get("caption") or " ".join(turn.answer for turn in turns)
    return Example(
        id=checked_id(record["id"], "'id'", where),
        video=checked_video(record["video"], where),
        turns=turns,
        caption=checked_text(caption, "'caption'", where),
    )


def _turns(messages: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        count = len(messages) if isinstance(messages, list) else type(messages).__name__
        raise AnnotationError(
            f"{where}: 'conversations' must be a list of pairs, a human message and gpt's answer; "
            f"got {count}"
        )
    for number, message in enumerate(messages):
        expected = SENDERS[number % 2]
        sender = message.get("from") if isinstance(message, dict) else message
        if not isinstance(sender, str) or sender.lower() not in expected:
            raise AnnotationError(
                f"{where}: message {number} must be from {expected[0]!r}, got {sender!r}; human "
                "and gpt (or user and assistant) take turns, human first"
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
            raise AnnotationError(
                f"{where}: message {number} has {mark} where no video can go; it may stand once, "
                "in the first human message"
            )
    answer = checked_text(gpt.get("value"), f"answer (message {number + 1})", where)
    kind = human.get("type") or ""
    kind = checked_text(kind, "'type'", where) if kind != "" else ""
    if kind == _ALL:
        raise AnnotationError(
            f"{where}: message {number} has the 'type' {kind!r}, which results keep for the "
            "questions of all types; give it another name"
        )
    return Turn(question, answer, kind)


def _without_mark(question: str) -> str:
    """`question` without the first of the marks that it has; what surrounds it becomes one."""
    for mark in MARKS:
        if mark in question:
            before, _, after = question.partition(mark)
            return f"{before.strip()} {after.strip()}".strip()
    return question
