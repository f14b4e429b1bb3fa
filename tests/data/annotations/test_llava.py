"""LLaVA files: what is read, and every way in which one is refused."""

import json
from pathlib import Path

import pytest

from rvllm_jax.data.annotations.example import AnnotationError, check_videos
from rvllm_jax.data.annotations.llava import write_llava
from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.types import Example, Turn

REAL = Path(__file__).parents[3].parent / "shared/data/real_videos"


def record(**changes) -> dict:
    turns = [
        {"from": "human", "value": "<video>\nWhat is it?"},
        {"from": "gpt", "value": "A panda."},
        {"from": "human", "value": "Where?", "type": "place"},
        {"from": "gpt", "value": "In a tree."},
    ]
    return {"id": "a", "video": "a.mp4", "conversations": turns} | changes


def pair(question, answer, **extra) -> list:
    return [{"from": "human", "value": question, **extra}, {"from": "gpt", "value": answer}]


def read(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_llava(path)


def test_turns_kinds_and_the_caption_made_of_the_answers(tmp_path):
    (one,) = read(tmp_path, [record()])
    assert (one.id, one.video, one.caption) == ("a", "a.mp4", "A panda. In a tree.")
    assert one.turns == (Turn("What is it?", "A panda."), Turn("Where?", "In a tree.", "place"))


@pytest.mark.parametrize(
    "value",
    [
        *("<video>\nWhy?", "Why?\n<video>", "<video> Why?", "Why?<video>", " Why? "),
        *("<image>\nWhy?", "Why?\n<image>"),
    ],
)
def test_the_mark_may_be_first_or_last_or_absent(tmp_path, value):
    (one,) = read(tmp_path, [record(conversations=pair(value, " So. "))])
    assert one.turns == (Turn("Why?", "So."),)


def test_a_video_in_the_middle_is_moved_first(tmp_path):
    (one,) = read(tmp_path, [record(conversations=pair("Look at <video> now. Why?", "So."))])
    assert one.turns == (Turn("Look at now. Why?", "So."),)


def test_messages_may_be_of_user_and_assistant(tmp_path):
    turns = [{"from": "user", "value": "Why?", "type": None}, {"from": "Assistant", "value": "So."}]
    (one,) = read(tmp_path, [record(conversations=turns)])
    assert one.turns == (Turn("Why?", "So."),)


def test_other_forms_that_llava_files_come_in(tmp_path):
    records = [record(id=7, video=["dir/a b.mp4"], caption="A bear.")]
    (one,) = read(tmp_path, b"\xef\xbb\xbf" + json.dumps(records).encode())
    assert (one.id, one.video, one.caption) == ("7", "dir/a b.mp4", "A bear.")


def test_records_without_a_video_are_left_out_and_counted(tmp_path, caplog):
    """As LLaVA's mixed files have them: about a picture, or of text alone."""
    whole = record(id="text", model="x", conversations=pair("What is it?", "A word."))
    text = {k: v for k, v in whole.items() if k != "video"}
    mixed = [text, record(), text | {"id": "p", "image": "p.jpg"}, text | {"video": None}]
    (one,) = read(tmp_path, mixed)
    assert one.id == "a"
    assert "file.json: 3 of 4 records have no video" in caplog.text
    with pytest.raises(AnnotationError, match="none of its 2 rows can be used; none has a 'video'"):
        read(tmp_path, mixed[:1] * 2)
    with pytest.raises(AnnotationError, match="has no 'video'; add it .'vidoe' may be meant"):
        read(tmp_path, [record(), text | {"vidoe": "b.mp4"}])


def test_what_is_written_is_read_as_it_was(tmp_path):
    turns = (Turn("Wer ist's? <b>", "Ärzte\n\u2028und", "3"), Turn("<i", "\U0001f600"))
    given = [
        Example("1", "dir/a b.mp4", turns, "Ärzte"),
        Example("2", "\udce9\udcff.mp4", turns[:1], "Ä"),  # bytes that are no UTF-8
    ]
    (tmp_path / "file.json").write_bytes(write_llava(given))
    assert read_llava(tmp_path / "file.json") == given


REFUSED = {
    "empty answer": (record(conversations=pair("Why?", " ")), r"answer \(message 1\).*empty"),
    "answer not text": (record(conversations=pair("Why?", None)), r"answer \(message 1\).*None"),
    "empty question": (record(conversations=pair("", "So.")), r"question \(message 0\)"),
    "only the mark": (record(conversations=pair("<video>\n", "So.")), r"beside <video>"),
    "type of all": (record(conversations=pair("Why?", "So.", type="all")), "'type' 'all'"),
    "type no text": (record(conversations=pair("Why?", "So.", type=3)), "'type' must be a text"),
    "picture": (record(conversations=pair("<video>Is <image> it?", "So.")), "has <image> where"),
    "mark twice": (record(conversations=pair("<video>Why?<video>", "So.")), "no video can go"),
    "late mark": (
        record(conversations=pair("Why?", "So.") + pair("<video> Who?", "I.")),
        "message 2 has <video>",
    ),
    "no id": ({k: v for k, v in record().items() if k != "id"}, "has no 'id'"),
    "no video": ({k: v for k, v in record().items() if k in ("id",)}, "has no 'video', 'conv"),
    "no turns": (record(conversations=[]), "list of pairs.*got 0"),
    "odd turns": (record(conversations=pair("Why?", "So.")[:1]), "list of pairs.*got 1"),
    "turns no list": (record(conversations="x"), "list of pairs.*got str"),
    "order": (record(conversations=pair("Why?", "So.")[::-1]), "message 0 must be from 'human'"),
    "system": (
        record(conversations=[{"from": "system", "value": "x"}, *pair("W?", "S.")[1:]]),
        "got 'system'",
    ),
    "two videos": (record(video=["a.mp4", "b.mp4"]), "names 2 videos"),
    "video no text": (record(video=3), "'video' must be a text"),
    "climbs": (record(video="../a.mp4"), "not inside the folder"),
    "climbs inside": (record(video="b/../../a.mp4"), "not inside the folder"),
    "absolute": (record(video="/etc/a.mp4"), "not inside the folder"),
    "caption no text": (record(caption=["x"]), "'caption' must be a text"),
    "half surrogate": (record(conversations=pair("Why?", "\ud83d")), "surrogate"),
    "bad id": (record(id=True), "'id' must be"),
    "no object": ("x", "expected an object, got 'x'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_records_are_refused_with_file_position_and_id(tmp_path, case):
    bad, message = REFUSED[case]
    with pytest.raises(AnnotationError, match=message) as caught:
        read(tmp_path, [record(id="first"), bad])
    given = bad.get("id") if isinstance(bad, dict) else None
    assert f"file.json: record 1 (id {given!r})" in str(caught.value)


def test_an_id_of_several_records_is_numbered_and_repeated_records_are_counted(tmp_path, caplog):
    """Files made of question-answer pairs have the video's id in each record."""
    other = record(id="7", conversations=pair("Why?", "So."))
    third = record(id="7", conversations=pair("Who?", "I."))
    found = read(tmp_path, [record(id=7), record(id="b"), other, record(id="7"), other, third])
    assert [c.id for c in found] == ["7", "b", "7#2", "7#3"]
    assert [len(c.turns) for c in found] == [2, 2, 1, 1]
    assert "file.json: 2 of 6 records repeat another one whole" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": "\xe9"}]', "not UTF-8 .byte 9"),
        ("[]".encode("utf-16"), "not UTF-8"),
        (b'[{"id": 1,]', r"not valid JSON.*expected one list of records, \[{...}, {...}\]$"),
        (
            b'{"id": 1}\n{"id": 2}',
            "not valid JSON.*one list of records.*make one list of its lines",
        ),
        (b"[" * 100_000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{}", "expected a list of at least one record, got dict"),
        (b"[]", "got an empty list"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message) as caught:
        read(tmp_path, content)
    assert "file.json" in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(AnnotationError, match="absent.json: cannot be read"):
        read_llava(tmp_path / "absent.json")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real videos are not at {REAL}")
def test_the_real_file():
    examples = read_llava(REAL / "llava.json")
    assert len(examples) == 12
    assert sum(len(example.turns) for example in examples) == 54
    assert examples[0].turns[0] == Turn("What is the child wearing on its face?", "Glasses.")
    check_videos(examples, REAL)
