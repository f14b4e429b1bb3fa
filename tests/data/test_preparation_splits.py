"""Several splits in one prepared folder: each keeps what the others need."""

import json
import shutil

import pytest

from rvllm_jax.data.frames import FrameStore
from rvllm_jax.data.llava import read_llava
from rvllm_jax.data.preparation import Options, PreparationError, prepare
from rvllm_jax.data.preparation_report import DONE


def _rows(*names):
    return [{"q": "What is it?", "a": f"It is {name}.", "video_id": name} for name in names]


def _content(folder) -> dict[str, bytes]:
    return {
        p.name: p.read_bytes() for p in sorted((folder / "frames").glob("*-of-*")) if p.is_file()
    }


def test_several_splits_share_one_folder_and_keep_each_others_videos(prepared, place, write_grey):
    for name in ("a", "part/b", "c"):  # a remark for each: they hold one frame only
        write_grey(place / "videos" / f"{name}.mp4", frames=1)
    prepared(_rows("a", "b"))
    prepared(_rows("b", "c"), split="validation")
    out = place / "out"
    store = FrameStore(out / "frames")
    assert sorted(store.entries) == ["a.mp4", "c.mp4", "part/b.mp4"]
    report = json.loads((out / "report.json").read_text())
    assert list(report["videos"]) == ["c.mp4", "part/b.mp4"] == list(report["notes"])
    for split, expected in (("train", 2), ("validation", 2)):
        conversations = read_llava(out / f"{split}.json")
        assert len(conversations) == expected
        assert all(c.video in store.entries for c in conversations)
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
    other = Options(stride=4, short_side=16, encoding="raw", frames_per_record=4, interval=4)
    with pytest.raises(PreparationError, match="split train is stored with .*'stride': 2.*own"):
        prepared(_rows("b"), split="test", options=other)
    (place / "videos" / "a.mp4").rename(place / "a.mp4")
    with pytest.raises(PreparationError, match="1 videos of its split train are no longer there"):
        prepared(_rows("b"), split="test")
    (place / "a.mp4").rename(place / "videos" / "a.mp4")
    write_grey(place / "elsewhere" / "a.mp4")
    (place / "e.json").write_text(json.dumps(_rows("a")))
    with pytest.raises(PreparationError, match="split train has another video 'a.mp4'"):
        options = Options(stride=2, short_side=16, encoding="raw", frames_per_record=4, interval=4)
        prepare(
            place / "elsewhere", [place / "e.json"], place / "out", split="test", options=options
        )
