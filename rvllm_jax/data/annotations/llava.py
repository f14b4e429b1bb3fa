"""LLaVA's JSON of examples about videos: one record, checked, and a file to write.

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
from typing import Any

from rvllm_jax.data.annotations.example import (
    AnnotationError,
    checked_id,
    checked_text,
    checked_video,
)
from rvllm_jax.system.atomic import read_json_or_empty
from rvllm_jax.system.file_layout import PREPARED
from rvllm_jax.types import Example, Turn

INFO = ".info.json"  # behind a prepared split's name: what its preparation recorded of it
VIDEO_MARK = "<video>"  # where LLaVA's prompts put the video
MARKS = (VIDEO_MARK, "<image>")  # files made for image models put the second before a video too
SENDERS = (("human", "user"), ("gpt", "assistant"))  # of a question, of an answer
_ALL = "all"  # what results call the questions of all types


def read_info(path: Path) -> dict[str, Any]:
    """What a preparation recorded of a split; {} where it is absent or broken.

    Raises LayoutError where a newer version made it.
    """
    info = read_json_or_empty(path)
    PREPARED.check(path, info)
    return info


def write_llava(examples: Iterable[Example]) -> bytes:
    """The bytes of a file that `read.read_llava` reads as these examples."""
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


def llava_example(record: dict) -> Example:
    """One record of a LLaVA file; raises `AnnotationError`, which does not name the record."""
    absent = [key for key in ("id", "video", "conversations") if key not in record]
    if absent:
        meant = _misspelt(record) if "video" in absent else ""
        hint = f" ({meant!r} may be meant for 'video')" if meant else ""
        raise AnnotationError(f"has no {', '.join(map(repr, absent))}; add it{hint}")
    turns = _turns(record["conversations"])
    caption = record.get("caption") or " ".join(turn.answer for turn in turns)
    return Example(
        id=checked_id(record["id"], "'id'"),
        video=checked_video(record["video"]),
        turns=turns,
        caption=checked_text(caption, "'caption'"),
    )


def _turns(messages: object) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        count = len(messages) if isinstance(messages, list) else type(messages).__name__
        raise AnnotationError(
            "'conversations' must be a list of pairs, a human message and gpt's answer; got "
            f"{count}"
        )
    for number, message in enumerate(messages):
        expected = SENDERS[number % 2]
        sender = message.get("from") if isinstance(message, dict) else message
        if not isinstance(sender, str) or sender.lower() not in expected:
            raise AnnotationError(
                f"message {number} must be from {expected[0]!r}, got {sender!r}; human and gpt "
                "(or user and assistant) take turns, human first"
            )
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return tuple(_turn(*pair, 2 * number) for number, pair in enumerate(pairs))


def _turn(human: dict, gpt: dict, number: int) -> Turn:
    """A question and its answer; the human's message is the `number`th of its record."""
    question = checked_text(human.get("value"), f"question (message {number})")
    mark = next((mark for mark in MARKS if mark in question), "")
    if mark and number == 0:  # once, the video may stand anywhere: what surrounds it becomes one
        question = " ".join(part.strip() for part in question.split(mark, 1))
        question = checked_text(question, f"question (message 0) beside {VIDEO_MARK}")
    for mark in MARKS:
        if mark in question:
            raise AnnotationError(
                f"message {number} has {mark} where no video can go; it may stand once, in the "
                "first human message"
            )
    answer = checked_text(gpt.get("value"), f"answer (message {number + 1})")
    kind = human.get("type") or ""
    kind = checked_text(kind, "'type'") if kind != "" else ""
    if kind == _ALL:
        raise AnnotationError(
            f"message {number} has the 'type' {kind!r}, which results keep for the questions of "
            "all types; give it another name"
        )
    return Turn(question, answer, kind)
