import collections
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rvllm_jax.data.shapes import build
from rvllm_jax.data.video import decode

ROOT = Path(__file__).parents[3]
SMALL = {"train": 60, "validation": 20, "test": 40, "heldout": 40}


def turns(record):
    """(type, question, answer) of each pair of turns."""
    pairs = record["conversations"]
    return [
        (ask["type"], ask["value"].removeprefix("<video>\n"), reply["value"])
        for ask, reply in zip(pairs[::2], pairs[1::2], strict=True)
    ]


@pytest.fixture(scope="module")
def full():
    """Scenes and records of the full-size splits, not rendered."""
    options = build.ShapesOptions()
    return {
        split: [build.draw_clip(options, split, index) for index in range(count)]
        for split, count in build.SIZES.items()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    calls = []
    paths = build.build(folder, sizes=SMALL, progress=lambda *call: calls.append(call))
    assert calls[-1] == (160, 160) and calls == sorted(calls)
    return folder, {split: json.loads(path.read_text()) for split, path in paths.items()}


@pytest.mark.parametrize("split", build.SIZES)
def test_no_answer_is_right_more_often_than_by_chance(full, split):
    answers = collections.defaultdict(collections.Counter)
    for _, record in full[split]:
        for kind, _, answer in turns(record):
            answers[kind][answer] += 1
    captions = answers.pop("caption", {})  # asked for in training alone
    assert bool(captions) == (split == "train")
    assert set(answers) == {"colour", "form", "number", "direction", "order"}
    for kind, counts in answers.items():
        share = max(counts.values()) / counts.total()
        assert share <= 0.35, (kind, counts)
    assert {kind: len(counts) for kind, counts in answers.items()} == {
        "colour": 4 if split == "heldout" else 7,
        "form": 4, "number": 3, "direction": 5, "order": 4 if split == "heldout" else 7,
    }  # fmt: skip


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def test_bytes_depend_on_seed_split_and_index_alone(built, tmp_path):
    folder, records = built
    few = {"train": 53, "test": 7}  # two chunks and other sizes, rendered by two processes
    build.build(tmp_path / "few", sizes=few, workers=2)
    whole, part = files(folder), files(tmp_path / "few")
    names = [name for name in part if name.endswith(".mp4")]
    assert len(names) == 60
    assert all(part[name] == whole[name] for name in names)
    assert json.loads(part["train.json"]) == records["train"][:53]
    build.build(tmp_path / "other", build.ShapesOptions(seed=1), sizes={"test": 7})
    other = files(tmp_path / "other")
    assert other["test.json"] != part["test.json"]
    assert all(other[name] != part[name] for name in other if name.endswith(".mp4"))


def test_finished_folder_is_reused_and_a_lost_clip_made_again(tmp_path):
    sizes = {"train": 6, "test": 3}
    paths = build.build(tmp_path, sizes=sizes)
    before, content = stamps(tmp_path), files(tmp_path)
    assert build.build(tmp_path, sizes=sizes) == paths and stamps(tmp_path) == before
    (tmp_path / "videos/train-00004.mp4").unlink()
    build.build(tmp_path, sizes=sizes)
    assert files(tmp_path) == content
    rewritten = {name for name, stamp in stamps(tmp_path).items() if stamp != before[name]}
    assert rewritten == {"train-00004.mp4", "train.json", "test.json", "shapes.json"}


def test_interrupted_build_is_completed_not_redone(tmp_path):
    sizes = {"train": 55, "test": 3}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path / "cut", sizes=sizes, progress=stop)
    before = stamps(tmp_path / "cut")
    assert not json.loads((tmp_path / "cut/shapes.json").read_text())["finished"]
    assert len(before) == 51 and "train.json" not in before
    build.build(tmp_path / "cut", sizes=sizes)
    build.build(tmp_path / "whole", sizes=sizes)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    after = stamps(tmp_path / "cut")
    assert all(after[name] == before[name] for name in before if name.endswith(".mp4"))


KILLED_IN_A_CLIP = """
import os, signal, sys
from rvllm_jax.data.shapes import build
from rvllm_jax.data.video import encode

def kill(path, *_):
    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

encode._encode = kill
build.build(sys.argv[1], sizes={"train": 3})
"""


def test_a_build_that_was_killed_leaves_no_half_clip_and_no_lock(tmp_path):
    command = [sys.executable, "-c", KILLED_IN_A_CLIP, tmp_path / "cut"]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert len(files(tmp_path / "cut")) == 3  # the lock, the marker and half a clip
    build.build(tmp_path / "cut", sizes={"train": 3})
    build.build(tmp_path / "whole", sizes={"train": 3})
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_folder_of_other_options_is_made_anew(tmp_path):
    build.build(tmp_path, build.ShapesOptions(seed=3), sizes={"train": 5})
    build.build(tmp_path, build.ShapesOptions(size=48, frames=40), sizes={"train": 3})
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == [
        f"train-0000{number}.mp4" for number in range(3)
    ]
    frames = list(decode.Decoding(tmp_path / "videos/train-00000.mp4"))
    assert len(frames) == 40 and frames[0][0].shape == (48, 48, 3)


def test_foreign_videos_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/mine.mp4").write_bytes(b"precious")
    build.build(tmp_path, sizes={"train": 1})
    assert (tmp_path / "videos/mine.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "arguments,word",
    [
        ({"sizes": {"trian": 3}}, "trian"),
        ({"sizes": {"train": 0}}, "at least one"),
    ],
)
def test_options_that_make_no_dataset_are_refused_before_a_file_is_written(
    tmp_path, arguments, word
):
    with pytest.raises(ValueError, match=word):
        build.build(tmp_path / "none", **arguments)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "values,word",
    [({"size": 35}, "even size"), ({"frames": 8}, "24 frames"), ({"seed": -1}, "seed")],
)
def test_options_that_make_no_clip_are_refused(values, word):
    with pytest.raises(ValueError, match=word):
        build.ShapesOptions(**values)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_that_an_earlier_version_rendered_is_taken_as_it_is(
    tmp_path, monkeypatch, finished
):
    """Its marker holds a digest of the source files of then."""
    sizes, made_with = {"train": 4}, "av 18.1.0 numpy 2.4.6"
    monkeypatch.setattr(build, "SIZES", sizes)
    build.build(tmp_path, sizes=sizes)
    marker = json.loads((tmp_path / "shapes.json").read_text()) | {"finished": finished}
    digest = "cfc576c0494db44605e462d216e6682906aaf2e0ba42552931230f5ef5df67fe"
    monkeypatch.setitem(build._DIGESTS, marker.pop("made_with"), build._DIGESTS[made_with])
    del marker["version"]
    for other in (digest, "0" * 64):
        (tmp_path / "shapes.json").write_text(json.dumps(marker | {"fingerprint": other}))
        before, content = stamps(tmp_path), files(tmp_path)
        build.build(tmp_path, sizes=sizes)
        clips = {name for name in before if name.endswith(".mp4")}
        kept = {name for name in clips if stamps(tmp_path)[name] == before[name]}
        assert kept == (clips if other == digest else set())
        if finished and other == digest:
            assert stamps(tmp_path) == before and files(tmp_path) == content
