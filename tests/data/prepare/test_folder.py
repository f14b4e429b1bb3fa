"""The folder of a preparation: it takes nobody's files, and one preparation at a time."""

import dataclasses
import json
import os
import threading

import pytest

from rvllm_jax.data.annotations.read import read_llava
from rvllm_jax.data.prepare import run
from rvllm_jax.data.prepare.findings import DONE, TOO_MANY_BAD
from rvllm_jax.data.prepare.options import PreparationError, PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.system.lock import locked

OPTIONS = PrepareOptions(
    stride=2, short_side=16, encoding="raw", frames_per_record=4, interval=4, thumbnails=1
)


def _rows(*names):
    return [{"q": "What is it?", "a": f"It is {name}.", "video_id": name} for name in names]


def _tree(folder) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("output", ["train.json", "train.info.json", "report.json", "check.json"])
@pytest.mark.parametrize("made_by", [os.rename, os.symlink, os.link])
def test_a_file_that_is_read_is_never_written(output, made_by, place):
    """In whatever way the file and the one to be written are the same."""
    own = place / "own.json"
    own.write_text(json.dumps(_rows("a")))
    (place / "out").mkdir()
    made_by(own, place / "out" / output)
    given = place / "out" / output if made_by is os.rename else own
    before = _tree(place)
    for check in (True, False):
        options = dataclasses.replace(OPTIONS, check=check)
        with pytest.raises(PreparationError, match=f"is read by .* would write .*{output}.* over"):
            prepare(place / "videos", [given], place / "out", "train", options)
    assert _tree(place) == before


def test_a_video_is_no_less_an_input(place):
    (place / "videos" / "a.mp4").rename(place / "videos" / "train.json.tmp")
    (place / "rows.json").write_text(json.dumps(_rows("train.json.tmp")))
    before = _tree(place)
    with pytest.raises(PreparationError, match="train.json.tmp: is read by"):
        prepare(place / "videos", [place / "rows.json"], place / "videos", "train", OPTIONS)
    assert _tree(place) == before


def test_a_split_that_no_preparation_wrote_stays(prepared, place):
    (place / "out").mkdir()
    own = place / "out" / "train.json"
    for content in ("[]", json.dumps(_rows("a"))):
        own.write_text(content)
        with pytest.raises(PreparationError, match="train.json: there already, and no preparation"):
            prepared(_rows("a"))
        assert _tree(place / "out") == {"train.json": content.encode()}
    own.unlink()
    for _ in range(2):  # what one has written, the next may replace
        assert prepared(_rows("a")).code == DONE


@pytest.mark.parametrize("name", ["frames", "frames.following"])
def test_videos_do_not_lie_where_the_frames_go(name, place):
    (place / "videos").rename(place / name)
    (place / name / "index.json").write_text("{}")
    (place / "rows.json").write_text(json.dumps(_rows("a", "b")))
    before = _tree(place)
    with pytest.raises(PreparationError, match="lies where the frames are stored"):
        prepare(place / name, [place / "rows.json"], place, "train", OPTIONS)
    assert _tree(place) == before


def test_a_file_put_beside_finished_frames_is_not_cleared_away(prepared, place):
    prepared(_rows("a"))
    (place / "out" / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(FrameStoreError, match="holds other files than a frame store .notes.txt"):
        prepared(_rows("b"))
    assert (place / "out" / "frames" / "notes.txt").read_text() == "mine"
    assert sorted(FrameStore(place / "out" / "frames").entries) == ["a.mp4"]


def test_killed_before_the_store_is_described_it_is_described_by_the_next(
    prepared, place, monkeypatch
):
    prepared(_rows("a", "b"), out="whole")
    prepared(_rows("c"))
    write = run.write_metadata

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_metadata", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared(_rows("a", "b"))
    out = place / "out"
    assert sorted(FrameStore(out / "frames").entries) == ["a.mp4", "part/b.mp4"]
    # The split that was there names frames that are gone.
    assert not (out / "train.json").exists() and not (out / "train.info.json").exists()
    monkeypatch.setattr(run, "write_metadata", write)
    assert prepared(_rows("a", "b")).code == DONE
    stored = {name: text for name, text in _tree(out).items() if "report" not in name}
    whole = {name: text for name, text in _tree(place / "whole").items() if "report" not in name}
    assert stored == whole and "frames/features.json" in stored
    assert (out / "tfds" / "frames" / "1.0.0" / "dataset_info.json").is_file()


@pytest.mark.parametrize("part", ["frames/features.json", "frames/dataset_info.json", "tfds/frames"
                                  "/1.0.0"])  # fmt: skip
def test_any_part_of_the_description_that_lacks_is_written_again(part, prepared, place):
    prepared(_rows("a"))
    lost = place / "out" / part
    content = None if lost.is_symlink() else lost.read_bytes()
    lost.unlink()
    if content:
        lost.write_bytes(content[: len(content) // 2])  # as a full disk leaves it
    assert prepared(_rows("a")).code == DONE
    assert lost.exists() and (content is None or lost.read_bytes() == content)


@pytest.mark.parametrize("lost", ["frames-videos.array_record-00000-of-00002",
                                  "times-00000-of-00002.f64"])  # fmt: skip
def test_a_deleted_file_of_the_frames_is_written_again_and_it_alone(lost, prepared, place):
    prepared(_rows("a", "b"))
    frames = place / "out" / "frames"
    before, other = _tree(frames), frames / "frames-videos.array_record-00001-of-00002"
    (frames / lost).unlink()
    written = other.stat().st_mtime_ns
    assert prepared(_rows("a", "b")).code == DONE
    assert _tree(frames) == before and other.stat().st_mtime_ns == written
    assert not (place / "out" / "frames.following").exists()


def test_a_second_preparation_waits_for_the_first_and_says_so(prepared, place):
    out, told, ended = place / "out", threading.Event(), []

    def say(line):
        if f"{out}: is being written by" in line:
            told.set()

    def second():
        ended.append(prepared(_rows("b", "c"), split="test", say=say))

    with locked(out):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(60)
        assert [path.name for path in out.iterdir()] == ["lock"] and not ended
    thread.join(60)
    assert ended[0].code == DONE


def test_two_splits_prepared_at_the_same_time_are_both_whole(prepared, place):
    threads = [
        threading.Thread(target=prepared, args=(_rows(*names),), kwargs=dict(split=split))
        for split, names in (("train", "ab"), ("test", "bc"), ("mine", "ac"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    stored = FrameStore(place / "out" / "frames").entries
    assert sorted(stored) == ["a.mp4", "c.mp4", "part/b.mp4"]
    for split in ("train", "test", "mine"):
        assert len(read_llava(place / "out" / f"{split}.json")) == 2


def test_reports_stay_by_split_and_no_check_takes_their_place(prepared, place):
    out = place / "out"

    def split_of(page):
        report = json.loads((out / f"{page}.json").read_text())
        assert f"<em>{report['split']}</em>" in (out / f"{page}.html").read_text()
        return report["split"]

    assert prepared(_rows("a"), check=True).page == out / "report.html"
    assert prepared(_rows("b"), split="test", check=True).page == out / "report.html"
    assert split_of("report") == "test"  # a check's page gives way to the next one's
    assert prepared(_rows("a")).page == out / "report.html"
    assert prepared(_rows("b"), split="test").code == DONE
    assert [split_of(f"{split}.report") for split in ("train", "test")] == ["train", "test"]
    before = _tree(out)
    assert prepared(_rows("c"), split="mine", check=True).page == out / "check.html"
    after = _tree(out)
    assert split_of("check") == "mine" and before.items() <= after.items()
    assert prepared(_rows("lost")).code == TOO_MANY_BAD
    assert "1 of 1 videos" in json.loads((out / "report.json").read_text())["verdict"]
    # That of the split that is still there.
    assert json.loads((out / "train.report.json").read_text())["code"] == DONE


def test_frames_of_a_preparation_that_was_broken_off_are_mentioned(prepared, place):
    def stopped(title):
        def update(done, total):
            if title == "decode":
                raise KeyboardInterrupt

        return update

    assert prepared(_rows("a")).verdict == "ready to train from"
    with pytest.raises(KeyboardInterrupt):
        prepared(_rows("c"), progress=stopped)
    found = prepared(_rows("a"))
    assert found.code == DONE and "frames.following holds" in found.verdict
    assert prepared(_rows("c")).verdict == "ready to train from"  # continued, it is gone


def test_a_folder_whose_name_is_no_utf8_is_refused(prepared, place):
    name = os.fsdecode(b"o\xff")
    with pytest.raises(PreparationError, match=r"--out=.*/o\?: its name is not UTF-8"):
        prepared(_rows("a"), out=name)
    assert not (place / name).exists()


def test_a_video_under_two_spellings_is_one_in_every_count(prepared):
    found = prepared(_rows("a", "a.mp4"))
    (part,) = found.report["parts"]
    assert found.report["usable_videos"] == part["usable_videos"] == 1
    assert part["usable_rows"] == 2
