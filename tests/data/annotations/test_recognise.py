"""Formats are told by what files hold; what is of none is refused by name."""

import random

import pytest

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.formats import FORMATS
from rvllm_jax.data.annotations.recognise import load, name_of


def recognise(paths) -> str:
    return name_of(load(paths)[0])


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised_by_its_content_whatever_the_files_are_called(
    format, samples, write
):
    contents = list(samples[format].values())
    random.Random(format).shuffle(contents)
    paths = write({f"{number}.txt": content for number, content in enumerate(contents)})
    assert recognise(paths) == format


def test_a_broken_first_record_does_not_hide_the_format(samples, write):
    rows = ["nonsense", {"q": "What?"}, *samples["video_instruct"]["vi.json"]]
    assert recognise(write({"a.json": rows})) == "video_instruct"


def test_files_of_several_formats_are_named_together(samples, write):
    files = samples["generative"] | samples["consistency"]
    assert recognise(write(files)) == "generative+consistency"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.json": [{"name": 1}]}, r"a.json: of no known format, its first record has \['name'\]"),
        ({"a.json": ["x"]}, "its first record has str"),
        ({"a.txt": "one two three\n"}, "a.txt: neither JSON nor a known table"),
        ({"a.json": "one"}, "a.json: not valid JSON"),
        ({"a.json": "[]"}, "an empty list"),
        ({"a.csv": b"gif_name\tquestion\tanswer\n\xff"}, "a.csv: not UTF-8"),
        ({"youtube_mapping.txt": "abc vid1\n"}, "no annotations among .*youtube_mapping.txt"),
        (
            {"test_q.json": [{"video_name": "a", "question": "b", "question_id": "c"}]},
            "test_q.json: 1 files of questions and 0 of answers .* file of answers",
        ),
        (
            {"test_a.json": [{"answer": "a", "question_id": "c"}]},
            "test_a.json: 0 files of questions and 1 of answers .* file of questions",
        ),
    ],
)
def test_what_is_of_no_known_format_is_refused_with_the_reason(files, message, write):
    with pytest.raises(AnnotationError, match=message):
        recognise(write(files))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(AnnotationError, match="lost.json: cannot be read"):
        recognise([tmp_path / "lost.json"])


_FOUR = "abc vid1\nabd vid2\nabe vid3\nabf vid4\n"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("abg\n", r"youtube_mapping.txt: line 5 is 'abg', and no line such as"),
        ("abg vid2\n", "line 5 names 'vid2', which line 2 has named"),
        ("\nabc vid5\n", "line 6 names 'abc', which line 1 has named"),
    ],
)
def test_a_list_of_names_with_a_wrong_line_is_refused_by_the_line(
    more, message, beside, samples, write
):
    rows = samples["msvd_msrvtt_original"]["val_qa.json"]
    paths = write({"val_qa.json": rows, "youtube_mapping.txt": _FOUR + more})
    with pytest.raises(AnnotationError, match=message):
        recognise(paths[:1] if beside else paths)


def test_what_lies_beside_msvds_files_as_the_list_of_names_and_is_none_is_refused(samples, write):
    rows = samples["msvd_msrvtt_original"]["val_qa.json"]
    paths = write({"val_qa.json": rows, "youtube_mapping.txt": "404: Not Found\n"})
    with pytest.raises(AnnotationError, match="youtube_mapping.txt: lies beside .*val_qa.json"):
        recognise(paths[:1])
