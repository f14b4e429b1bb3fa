"""Several splits in one prepared folder: each keeps what the others need."""

import dataclasses
import json
import shutil

import pytest

from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.prepare.findings import DONE
from rvllm_jax.data.prepare.options import PreparationError, PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.store.reader import FrameStore

OPTIONS = PrepareOptions(stride=2, short_side=16, encoding="raw", frames_per_record=4, interval=4)


def _rows(*names):
    return [{"q": "What is it?", "a": f"It is {name}.", "video_id": name} for name in names]


def _content(folder) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in sorted((folder / "frames").glob("*-of-*")) if p.is_file()
    }


def test_several_splits_share_one_folder_and_keep_each_others_videos(prepared, place, write_grey):
    for name in ("a", "part/b", "c"):  # a remark for each: they hold one frame only
        write_grey(place / "videos" / f"{name}.mp4", frames=1)
    checked = prepared(_rows("a", "b"), check=True).report["notes"]
    assert prepared(_rows("a", "b")).report["notes"] == checked == {
        "a.mp4": "one frame only", "part/b.mp4": "one frame only",
    }  # fmt: skip
    prepared(_rows("b", "c"), split="validation")
    out = place / "out"
    store = FrameStore(out / "frames")
    assert sorted(store.entries) == ["a.mp4", "c.mp4", "part/b.mp4"]
    report = json.loads((out / "report.json").read_text())
    assert list(report["videos"]) == ["c.mp4", "part/b.mp4"] == list(report["notes"])
    for split, expected in (("train", 2), ("validation", 2)):
        examples = read_llava(out / f"{split}.json")
        assert len(examples) == expected
        assert all(c.video in store.entries for c in examples)
    index = (out / "frames" / "index.json").stat().st_mtime_ns
    assert prepared(_rows("a", "b")).code == DONE
    assert (out / "frames" / "index.json").stat().st_mtime_ns == index  # nothing was redone


def test_frames_stay_until_those_that_replace_them_are_whole(prepared, place, monkeypatch):
    out = place / "out"
    assert prepared(_rows("a", "b")).code == DONE
    assert prepared(_rows("a", "c"), split="test", check=True).code == DONE  # names no frames
    before = _content(out)

    def stopped(title):
        def update(done, total):
            if title == "decode":
                raise KeyboardInterrupt

        return update

    with pytest.raises(KeyboardInterrupt):
        prepared(_rows("c"), split="test", progress=stopped)
    assert _content(out) == before and (out / "train.json").is_file()
    assert (
        "start the same command again" in json.loads((out / "report.json").read_text())["verdict"]
    )

    def removed(path, **_):
        assert not (out / "test.json").exists()
        remove(path)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", removed)
    assert prepared(_rows("c"), split="test").code == DONE
    assert sorted(FrameStore(out / "frames").entries) == ["a.mp4", "c.mp4", "part/b.mp4"]
    assert not (out / "frames.following").exists()
    after = _content(out)
    assert prepared(_rows("a")).code == DONE  # all that it needs is there
    assert _content(out) == after


def test_a_split_that_would_spoil_another_is_refused(prepared, place, write_grey):
    prepared(_rows("a"))
    other = dataclasses.replace(OPTIONS, stride=4)
    with pytest.raises(PreparationError, match="split train is stored with .*'stride': 2.*own"):
        prepared(_rows("b"), split="test", options=other)
    (place / "videos" / "a.mp4").rename(place / "a.mp4")
    with pytest.raises(PreparationError, match="1 videos of its split train are no longer there"):
        prepared(_rows("b"), split="test")
    (place / "a.mp4").rename(place / "videos" / "a.mp4")
    write_grey(place / "elsewhere" / "a.mp4")
    (place / "e.json").write_text(json.dumps(_rows("a")))
    with pytest.raises(PreparationError, match="split train has another video 'a.mp4'"):
        prepare(place / "elsewhere", [place / "e.json"], place / "out", "test", OPTIONS)


def _activitynet(place, name, *numbers):
    """A pair of files with these questions of one video."""
    ids = [f"v_aaaaaaaaaaa_{number}" for number in numbers]
    asked = {"video_name": "aaaaaaaaaaa", "question": "who?"}
    questions = [asked | {"question_id": id} for id in ids]
    paths = [place / f"{name}_q.json", place / f"{name}_a.json"]
    paths[0].write_text(json.dumps(questions))
    paths[1].write_text(json.dumps([{"answer": "he", "type": 3, "question_id": id} for id in ids]))
    return paths


def test_a_part_of_a_split_under_the_name_of_another(place, write_grey):
    write_grey(place / "videos" / "v_aaaaaaaaaaa.mp4")

    def of(paths, split, **more):
        options = dataclasses.replace(OPTIONS, allow_partial=True, **more)
        return prepare(
            place / "videos", paths, place / "out", split, options, say=lambda line: None
        )

    named = _activitynet(place, "test", 1, 2)
    with pytest.raises(PreparationError, match="_a.json: the file's name is .*split test, and"):
        of(named, "validation")
    found = of(named, "test")
    assert found.code == DONE and "nothing tells" not in found.verdict
    assert [part["split_told_by"] for part in found.report["parts"]] == ["file name"]
    # Nothing tells the split of these, except that the questions are those of another.
    with pytest.raises(PreparationError, match="test has 1 of the questions .*'v_aaaaaaaaaaa_2'"):
        of(_activitynet(place, "some", 2, 3), "validation")
    found = of(_activitynet(place, "some", 3, 4), "validation")
    assert found.code == DONE and "nothing tells that" in found.verdict
    assert "some_a.json are of activitynet_qa's split validation" in found.verdict
    info = json.loads((place / "out" / "validation.info.json").read_text())
    assert info["annotations"][0]["split_told_by"] == ""
    assert of(_activitynet(place, "some", 2, 3), "validation", no_benchmark=True).code == DONE
