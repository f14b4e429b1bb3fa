"""Annotations and videos in, examples and their frame store out."""

import json
import shutil

import numpy as np
import pytest

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.batches.source import SourceError, open_data
from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions
from rvllm_jax.data.video import encode

OPTIONS = dict(stride=1, short_side=16, encoding="raw", frames_per_record=4)


def _record(name: str) -> dict:
    turns = [("human", "<video>\nWhich video is this?"), ("gpt", name)]
    messages = [{"from": who, "value": value} for who, value in turns]
    return {"id": f"about {name}", "video": f"{name}.mp4", "conversations": messages}


@pytest.fixture
def folder(tmp_path):
    """Videos a, b, c and "bad", which does not decode; "other" is in no annotations."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for shade, name in enumerate(("a", "b", "c", "other")):
        frames = np.full((5, 16, 16, 3), 60 * shade, np.uint8)
        encode.write(videos / f"{name}.mp4", frames, fps=5)
    (videos / "bad.mp4").write_bytes(b"no video")
    for split, names in {"train": ["a", "bad", "b"], "test": ["c"], "spoilt": ["bad"]}.items():
        (tmp_path / f"{split}.json").write_text(json.dumps([_record(name) for name in names]))
    return tmp_path


@pytest.fixture
def opened(folder):
    """opened(split=file, ..., option=value) -> TrainingData; `worked`: videos decoded a time."""
    worked = []

    def progress(title):
        return lambda done, total: worked.append((title, done, total))

    def opened(max_bad=0.5, validation="", test="test", **changes):
        splits = {"train": "train", "validation": validation, "test": test}
        paths = {s: str(folder / f"{name}.json") if name else "" for s, name in splits.items()}
        worked.clear()
        return open_data(
            str(folder / "videos"), paths, StoreOptions(**OPTIONS | changes),
            root=folder / "root", max_bad=max_bad, workers=0, progress=progress,
        )  # fmt: skip

    opened.worked = worked
    return opened


def names(source) -> dict[str, list[str]]:
    return {split: [c.video for c in own] for split, own in source.splits.items()}


def test_a_video_that_does_not_decode_is_set_aside_and_named(opened):
    source = opened()
    assert names(source) == {"train": ["a.mp4", "b.mp4"], "test": ["c.mp4"]}
    assert list(source.set_aside) == ["bad.mp4"] and "bad.mp4" in source.set_aside["bad.mp4"]
    assert sorted(source.store.entries) == ["a.mp4", "b.mp4", "c.mp4"]  # what is asked for
    assert source.store.read("b.mp4", np.array([4])).shape == (1, 16, 16, 3)


def test_more_than_the_allowed_share_is_refused(opened):
    with pytest.raises(FrameStoreError, match=r"1 of 4 videos do not decode.*'bad.mp4'"):
        opened(max_bad=0.2)
    assert opened(max_bad=0.25).set_aside


def test_a_split_of_which_nothing_is_left_is_refused(opened):
    message = r"spoilt\.json: none of its 1 examples.*bad\.mp4.*Replace"
    with pytest.raises(SourceError, match=message):
        opened(validation="spoilt")


def test_frames_are_reused_and_other_options_lie_beside_them(opened, folder):
    first = opened().store.folder
    assert opened.worked and opened.worked[-1][1:] == (4, 4)
    content = {p: p.stat().st_mtime_ns for p in first.iterdir()}
    again = opened()
    assert again.store.folder == first and not opened.worked
    assert names(again)["train"] == ["a.mp4", "b.mp4"] and list(again.set_aside) == ["bad.mp4"]
    fewer = opened(test="")  # the store has them among others
    assert fewer.store.folder == first and not opened.worked
    with pytest.raises(FrameStoreError, match="1 of 3 videos do not decode"):  # of those asked for
        opened(test="", max_bad=0.3)
    for change in (dict(stride=2), dict(short_side=8), dict(encoding="jpeg")):
        assert opened(**change).store.folder != first and opened.worked
    assert content == {p: p.stat().st_mtime_ns for p in content}  # none was overwritten
    opened()
    assert not opened.worked


def test_a_video_that_was_replaced_is_decoded_again(opened, folder):
    dark = opened().store.read("a.mp4", np.array([0])).mean()
    encode.write(folder / "videos" / "a.mp4", np.full((7, 16, 16, 3), 250, np.uint8), fps=5)
    source = opened()
    assert opened.worked and source.store.entries["a.mp4"].num_frames == 7
    assert source.store.read("a.mp4", np.array([0])).mean() > dark + 100


def test_annotations_that_cannot_be_used_are_refused_before_anything_is_decoded(opened, folder):
    (folder / "lost.json").write_text(json.dumps([_record("lost")]))
    with pytest.raises(AnnotationError, match="'about lost' names 'lost.mp4'"):
        opened(validation="lost")
    with pytest.raises(AnnotationError, match="absent.json"):
        opened(validation="absent")
    assert not opened.worked and not (folder / "root").exists()


@pytest.fixture
def prepared(folder):
    """A prepared folder with the splits train and test; the videos are gone."""
    options = PrepareOptions(**OPTIONS, interval=2, max_bad=0.5)
    for split in ("train", "test"):
        found = prepare(
            folder / "videos", [folder / f"{split}.json"], folder / "out", split, options,
            say=lambda line: None,
        )  # fmt: skip
        assert found.code == 0
    shutil.rmtree(folder / "videos")
    return folder / "out"


def _open_prepared(out, *, annotations=None, max_bad=0.0, **changes):
    splits = annotations or {split: str(out / f"{split}.json") for split in ("train", "test")}
    how = dict(root=out / "unused", max_bad=max_bad, workers=0)
    return open_data(str(out), splits, StoreOptions(**OPTIONS | changes), **how)


def test_a_prepared_folder_needs_no_videos_and_tells_where_it_comes_from(prepared):
    source = _open_prepared(prepared)
    assert names(source) == {"train": ["a.mp4", "b.mp4"], "test": ["c.mp4"]}
    assert source.store.read("b.mp4", np.array([4])).shape == (1, 16, 16, 3)
    assert not source.set_aside and not (prepared / "unused").exists()
    train = source.origins["train"]
    assert (train["split"], train["partial"], train["format"]) == ("train", [], "llava")
    assert list(train["set_aside"]) == ["bad.mp4"] and "files" not in train


def test_examples_about_videos_that_were_set_aside_are_left_out(prepared, folder):
    own = {"train": str(folder / "train.json"), "test": ""}
    with pytest.raises(FrameStoreError, match="1 of 3 videos do not decode"):
        _open_prepared(prepared, annotations=own, max_bad=0.3)
    source = _open_prepared(prepared, annotations=own, max_bad=0.4)
    assert names(source) == {"train": ["a.mp4", "b.mp4"]} and list(source.set_aside) == ["bad.mp4"]
    assert source.origins == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("stride", 2), ("short_side", 8), ("encoding", "jpeg"), ("frames_per_record", 8)],
)
def test_frames_stored_otherwise_than_configured_are_refused_with_both(prepared, key, value):
    with pytest.raises(SourceError, match=f"{key} {OPTIONS[key]}, config.data.{key}={value}"):
        _open_prepared(prepared, **{key: value})


def test_what_was_not_prepared_is_refused_by_name(prepared, folder):
    (folder / "own.json").write_text(json.dumps([_record("other")]))
    with pytest.raises(SourceError, match="own.json: 1 of its videos .* the first 'other.mp4'"):
        _open_prepared(prepared, annotations={"train": str(folder / "own.json")})
    (prepared / "frames" / "index.json").unlink()
    with pytest.raises(SourceError, match="has not finished; start rvllm_jax.prepare again"):
        _open_prepared(prepared)
