"""Videos and annotations in, a prepared folder out: what is in it, and what is refused or told."""

import html
import json
import os
import shutil

import numpy as np
import pytest

from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.prepare.findings import DONE, PARTIAL, TOO_MANY_BAD
from rvllm_jax.data.prepare.options import PreparationError, PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.system.atomic import WriteError


def _rows(*names, first=0):
    return [
        {"q": f"What is {name}?", "a": f"It is {name}.", "video_id": name} for name in names[first:]
    ]


def shards(folder) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted((folder / "frames").iterdir())
        if path.name.startswith(("frames-", "times-"))
    }


def test_a_prepared_folder_holds_examples_frames_and_a_report_of_both(prepared, place):
    told = []
    found = prepared(_rows("a", "b", "c", "b"), say=told.append)
    assert (found.code, found.verdict) == (DONE, "ready to train from")
    out = place / "out"
    examples = read_llava(out / "train.json")
    assert [c.video for c in examples] == ["a.mp4", "part/b.mp4", "c.mp4", "part/b.mp4"]
    assert examples[0].turns[0].answer == "It is a."
    store = FrameStore(out / "frames")
    assert sorted(store.entries) == ["a.mp4", "c.mp4", "part/b.mp4"]
    assert store.read("c.mp4", np.array([0]))[0].mean() == pytest.approx(120, abs=3)
    info = json.loads((out / "train.info.json").read_text())
    assert (info["split"], info["partial"]) == ("train", [])
    assert (info["questions"], info["videos"]) == (4, 3)
    assert info["files"]["a.mp4"] == str(place / "videos" / "a.mp4")
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(json.dumps(found.report))
    assert report["stored"]["frames"] == 9 == report["estimate"]["frames"]
    assert report["unused"] == ["bad.avi", "lone.mp4"]
    (duplicate,) = report["annotations"]["duplicates"]
    assert duplicate["video"] == "b" and duplicate["ids"] == ["b:1", "b:3"]
    assert "3 videos" in told[0] and "about 9 frames" in told[0]
    assert "What is a?" in (out / "report.html").read_text()


def test_tfds_reads_the_frames(prepared, place):
    import tensorflow_datasets as tfds

    prepared(_rows("a"))
    source = tfds.builder_from_directory(place / "out" / "frames").as_data_source("videos")
    assert source[0]["video"] == b"a.mp4"


def test_a_check_reports_all_the_same_and_stores_no_frame(prepared, place):
    checked = prepared(_rows("a", "b"), check=True)
    written = sorted(path.name for path in (place / "out").iterdir())
    assert written == ["report.html", "report.json"]
    whole = prepared(_rows("a", "b"))
    assert checked.report["stored"] is None and whole.report["stored"]["videos"] == 2
    own = {"stored": 0, "check": 0}
    assert checked.report | own == whole.report | own


def test_unusable_videos_are_named_and_their_share_decides(prepared, place):
    found = prepared(_rows("a", "b", "c", "bad", "lost", "lost"), max_bad=0.39)
    assert found.code == TOO_MANY_BAD and "2 of 5 videos are unusable, 1 of them" in found.verdict
    assert found.report["missing"] == {"lost": 2}
    assert list(found.report["set_aside"]) == ["bad.avi"] and found.report["stored"] is None
    assert not (place / "out" / "train.json").exists()
    found = prepared(_rows("a", "b", "c", "bad", "lost", "lost"), max_bad=0.4)
    assert found.code == DONE and list(found.report["set_aside"]) == ["bad.avi"]
    assert found.verdict.startswith("ready to train from; left out, as --max_bad allows: 2 of 5 v")
    assert [c.video for c in read_llava(place / "out" / "train.json")] == [
        *("a.mp4", "part/b.mp4", "c.mp4")
    ]
    info = json.loads((place / "out" / "train.info.json").read_text())
    assert info["missing"] == ["lost"] and list(info["set_aside"]) == ["bad.avi"]


def test_unusable_rows_are_named_and_their_share_decides(prepared):
    rows = [*_rows("a", "b", "c"), {"q": "", "a": "x", "video_id": "a"}]
    found = prepared(rows, max_bad=0.2)
    assert found.code == TOO_MANY_BAD and "1 of 4 rows" in found.verdict
    found = prepared(rows, max_bad=0.25)
    assert found.code == DONE and len(found.report["annotations"]["rows_set_aside"]) == 1
    assert "left out, as --max_bad allows: 1 of 4 rows" in found.verdict


def test_no_usable_video_is_refused_whatever_is_allowed(prepared):
    assert prepared(_rows("lost", "gone"), max_bad=1.0).code == TOO_MANY_BAD
    assert prepared(_rows("bad"), max_bad=1.0).code == TOO_MANY_BAD


def _activitynet(names) -> tuple[list, list]:
    ids = [f"v_{name}_1" for name in names]
    questions = [
        {"video_name": name, "question": "who?", "question_id": identity}
        for name, identity in zip(names, ids, strict=True)
    ]
    return questions, [{"answer": "he", "type": 3, "question_id": identity} for identity in ids]


def test_fewer_than_published_are_refused_unless_that_is_recorded(prepared, place, write_grey):
    names = ["aaaaaaaaaaa", "bbbbbbbbbbb"]
    for name in names:
        write_grey(place / "videos" / f"v_{name}.mp4")
    found = prepared(*_activitynet(names), split="test")
    assert found.code == PARTIAL and found.report["stored"] is None
    lack = "activitynet_qa test: 2 of 8,000 questions and 2 of 800 videos"
    assert lack in found.verdict and "--allow_partial" in found.verdict
    assert not (place / "out" / "test.json").exists()
    found = prepared(*_activitynet(names), split="test", allow_partial=True)
    assert found.code == DONE and found.report["partial"] == [lack]
    assert f"ready to train from; fewer than published, as --allow_partial allows: {lack}" in (
        found.verdict
    )
    info = json.loads((place / "out" / "test.info.json").read_text())
    assert info["allow_partial"] and info["partial"] == [lack] and info["split"] == "test"
    assert lack in (place / "out" / "report.html").read_text()
    assert prepared(*_activitynet(names), split="mine").code == DONE  # nothing is published


def test_msvds_files_are_found_by_either_name_where_the_list_of_names_is_given(
    prepared, place, write_grey
):
    write_grey(place / "videos" / "bQJQGoJF7_k_162_169.avi.mp4")
    (place / "videos" / "bQJQGoJF7_k_162_169.avi.mp4").rename(
        place / "videos" / "bQJQGoJF7_k_162_169.avi"
    )
    rows = [{"answer": "he", "id": 30933, "question": "who?", "video_id": 1201}]
    found = prepared(rows, split="validation", check=True, allow_partial=True)
    assert (
        found.code == TOO_MANY_BAD and "add youtube_mapping.txt to --annotations" in found.verdict
    )
    (place / "youtube_mapping.txt").write_text("bQJQGoJF7_k_162_169 vid1201\n")
    found = prepared(rows, split="validation", allow_partial=True)
    assert found.code == DONE and found.report["partial"]
    assert list(found.report["videos"]) == ["bQJQGoJF7_k_162_169.avi"]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (range(158_581, 158_591), "numbers are those of msrvtt_qa's split validation, .*test"),
        (range(170_000, 170_900), "numbers, 170000 to 170899, are of no one split of msrvtt_qa"),
    ],
)
def test_questions_of_another_split_are_refused_by_their_numbers(
    prepared, place, write_grey, numbers, message
):
    asked = {"video_name": "video1", "question": "who?"}
    questions = [asked | {"question_id": str(n)} for n in numbers]
    answers = [{"answer": "he", "type": 3, "question_id": str(n)} for n in numbers]
    with pytest.raises(PreparationError, match=message):
        prepared(questions, answers, split="test")
    # Of one's own videos with such names no benchmark's counts are asked for.
    write_grey(place / "videos" / "video1.mp4")
    assert prepared(questions, answers, split="test", no_benchmark=True).code == DONE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(options=PrepareOptions(stride=4)), "--stride=4 must divide --interval=6"),
        (dict(options=PrepareOptions(short_side=0)), "--short_side=0: expected"),
        (dict(options=PrepareOptions(encoding="png")), "--encoding=png"),
        (dict(split="val"), "--split=val: expected validation"),
        (dict(split="../x"), "expected train, validation or test"),
        (dict(split="report"), "expected train"),
        (dict(split="check"), "expected train"),
        (
            dict(options=PrepareOptions(workers=-1)),
            "--workers=-1: expected a number of processes, or 0",
        ),
        (dict(options=PrepareOptions(max_bad=2)), "--max_bad=2"),
        (dict(options=PrepareOptions(max_bad=float("nan"))), "--max_bad=nan"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    changes, message, place, prepared
):
    (place / "a.json").write_text(json.dumps(_rows("a")))
    given = dict(split="train") | changes
    with pytest.raises(PreparationError, match=message):
        prepare(place / "videos", [place / "a.json"], place / "out", **given)
    assert not (place / "out").exists()


def test_a_video_that_fits_several_files_is_set_aside_and_counted(prepared, place):
    shutil.copy(place / "videos" / "a.mp4", place / "videos" / "a.avi")
    found = prepared(_rows("a", "b", "c"), max_bad=0.3)
    assert found.code == TOO_MANY_BAD
    assert "1 of 3 videos are unusable, 0 of them missing, 1 fit several files" in found.verdict
    found = prepared(_rows("a", "b", "c"), max_bad=0.4)
    assert found.code == DONE and found.report["usable_videos"] == 2
    assert list(found.report["set_aside"]) == ["a"]
    assert "'a.avi' or 'a.mp4'" in found.report["set_aside"]["a"]
    assert "'a.avi' or 'a.mp4'" in html.unescape((place / "out" / "report.html").read_text())
    out = place / "out"
    assert [c.video for c in read_llava(out / "train.json")] == ["part/b.mp4", "c.mp4"]
    info = json.loads((out / "train.info.json").read_text())
    assert info["set_aside"] == found.report["set_aside"] and info["missing"] == []
    assert prepared(_rows("a"), max_bad=1.0).code == TOO_MANY_BAD  # none is left


def test_a_link_that_leads_to_itself_a_lost_one_and_a_folder_are_set_aside(prepared, place):
    videos = place / "videos"
    (videos / "loop.mp4").symlink_to("loop.mp4")
    (videos / "lost.mp4").symlink_to("nowhere")
    (videos / "folder.mp4").mkdir()
    found = prepared(_rows("a", "loop", "lost", "folder"), max_bad=0.7)
    assert found.code == TOO_MANY_BAD and "3 of 4 videos" in found.verdict
    assert "0 of them missing, folders: 1" in found.verdict
    found = prepared(_rows("a", "loop", "lost", "folder"), max_bad=0.8)
    assert found.code == DONE and sorted(found.report["set_aside"]) == [
        "folder", "loop.mp4", "lost.mp4",
    ]  # fmt: skip
    assert prepared(_rows("b"), split="test").code == DONE  # they had no frames to lose


def test_names_that_are_no_utf8_survive(prepared, place):
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        shutil.copy(place / "videos" / "a.mp4", place / "videos" / name)
    except OSError:
        pytest.skip("the file system takes no such name")
    assert prepared(_rows("a")).report["unused"].count(name) == 1
    rows = _rows("a") + [_rows("b")[0] | {"video_id": name}]
    assert prepared(rows).code == DONE
    assert FrameStore(place / "out" / "frames").entry(name).num_frames == 3
    assert read_llava(place / "out" / "train.json")[1].video == name
    assert "caf" in (place / "out" / "report.html").read_text()


def test_the_same_input_gives_the_same_bytes(prepared, place):
    prepared(_rows("a", "b", "c"))
    prepared(_rows("a", "b", "c"), out="again", workers=2)
    assert shards(place / "out") == shards(place / "again")
    first, again = (place / out / "train.json" for out in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_folder_that_cannot_be_made_or_holds_other_files_is_refused(prepared, place):
    (place / "file").write_text("x")
    with pytest.raises(WriteError, match="file: cannot be written"):
        prepared(_rows("a"), out="file")
    (place / "out" / "frames").mkdir(parents=True)
    (place / "out" / "frames" / "thesis.txt").write_text("x")
    with pytest.raises(FrameStoreError, match="thesis.txt"):
        prepared(_rows("a"))
    assert (place / "out" / "frames" / "thesis.txt").exists()
