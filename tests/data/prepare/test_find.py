"""Videos are found by the names that annotations have for them, or refused by name."""

import os
import tempfile
from pathlib import Path

import pytest

from rvllm_jax.data.annotations.video_names import VideoFilesError
from rvllm_jax.data.prepare.find import find_videos


@pytest.fixture
def folder(tmp_path):
    """folder(*names) -> a folder with empty files of these names."""

    def folder(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return folder


@pytest.mark.parametrize(
    ("file", "video"),
    [
        ("clip.mp4", "clip.mp4"),
        ("clip.MKV", "clip"),
        ("clip.webm", "clip.mp4"),  # the annotations may have another suffix
        ("part1/clip.mp4", "clip"),
        ("part1/clip.mp4", "part1/clip"),
        ("a.b.mp4", "a.b"),
        ("./clip.mp4", "./clip.mp4"),
        ("v_1QIUV7WYKXg.mkv", "1QIUV7WYKXg"),  # ActivityNet
        ("1QIUV7WYKXg.mp4", "v_1QIUV7WYKXg"),
        ("tumblr_no73_250.mp4", "tumblr_no73_250"),  # TGIF
        ("tumblr_no73_250.gif", "tumblr_no73_250.mp4"),
        ("video6513.mp4", "video6513"),  # MSRVTT
        ("vid1201.avi", "bQJQGoJF7_k_162_169"),  # MSVD
        ("bQJQGoJF7_k_162_169.avi", "vid1201"),
    ],
)
def test_a_video_is_found_by_its_name_or_a_known_renaming(file, video, folder):
    aliases = {"bQJQGoJF7_k_162_169": "vid1201", "vid1201": "bQJQGoJF7_k_162_169"}
    found = find_videos(folder(file, "other.mp4", "notes.txt"), [video], aliases=aliases)
    name = file.removeprefix("./")
    assert found.name_of == {video: name} and list(found.files) == [name]
    assert found.files[name].is_file()
    assert not found.missing and found.unused == ["other.mp4"]


def test_names_alike_are_not_taken_for_each_other(folder):
    """v_ is dropped of YouTube's ids of eleven characters alone."""
    found = find_videos(
        folder("v_1.mp4", "clip2.mp4", "b/clip.mp4"), ["1", "clip", "clip2", "a/clip"]
    )
    assert found.name_of == {"clip": "b/clip.mp4", "clip2": "clip2.mp4"}
    assert found.missing == ["1", "a/clip"]


@pytest.mark.parametrize(
    ("files", "video"),
    [
        (["clip.avi", "clip.mp4"], "clip"),
        (["a/clip.mp4", "b/clip.mp4"], "clip.mp4"),
        (["clip.avi", "clip.mkv"], "clip.mp4"),
        (["1QIUV7WYKXg.mp4", "v_1QIUV7WYKXg.mp4"], "1QIUV7WYKXg"),
        (["name.avi", "vid7.avi"], "vid7"),
    ],
)
def test_a_name_that_fits_several_files_takes_none_and_names_all(files, video, folder):
    found = find_videos(folder(*files, "other.mp4"), [video, "other"], aliases={"vid7": "name"})
    assert list(found.files) == ["other.mp4"] and found.name_of == {"other": "other.mp4"}
    assert not found.missing and not found.unused
    assert list(found.ambiguous) == [video]
    assert f"{files[0]!r} or {files[1]!r}" in found.ambiguous[video]


@pytest.mark.parametrize("files", [["clip.mp4", "clip.avi"], ["clip.MP4", "clip.avi", "clip.gif"]])
def test_a_suffix_that_the_annotations_name_decides(files, folder):
    found = find_videos(folder(*files), ["tune/clip.mp4"])
    assert found.name_of == {"tune/clip.mp4": files[0]} and not found.ambiguous
    assert found.unused == sorted(files[1:])
    assert list(find_videos(folder(), ["clip.mkv"]).ambiguous) == ["clip.mkv"]


def test_the_very_name_of_a_file_is_not_ambiguous(folder):
    files = folder("clip.mp4", "clip.avi", "a/clip.mp4")
    found = find_videos(files, ["clip.mp4", "a/clip.mp4"])
    assert found.name_of == {"clip.mp4": "clip.mp4", "a/clip.mp4": "a/clip.mp4"}


@pytest.mark.parametrize("video", ["../clip.mp4", "/etc/clip", "a/../../clip", "a\0b"])
def test_a_name_that_leaves_the_folder_is_refused(video, folder):
    (folder("in/x.mp4") / "clip.mp4").touch()
    with pytest.raises(VideoFilesError, match="outside the folder"):
        find_videos(folder() / "in", [video])


def test_names_that_are_no_utf8_survive(folder):
    name = os.fsdecode(b"caf\xe9.mp4")
    path = folder("other.mp4") / name
    try:
        path.touch()
    except OSError:
        pytest.skip("the file system takes no such name")
    found = find_videos(folder(), [name, "other"])
    assert found.files[name].is_file() and found.name_of[name] == name
    assert find_videos(folder(), ["other"]).unused == [name]


def test_a_folder_below_that_cannot_be_read_is_named(tmp_path):
    """Its videos would else be missing, and nobody would know why."""
    with tempfile.TemporaryDirectory() as folder:  # one that others may enter
        os.chmod(folder, 0o755)
        closed = Path(folder, "part")
        closed.mkdir()
        for place in (closed.parent, closed):
            (place / f"{place.name}.mp4").touch()
        closed.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(VideoFilesError, match="part: cannot be read .Permission denied"):
                find_videos(folder, ["part"])
        finally:
            os.seteuid(user)
            closed.chmod(0o755)


UNUSUAL = ["a.m2v", "b.3g2", "c.qt", "d.mp4v", "e.divx", "f.ogg", "g.rm", "h.mxf", "part/none"]


def test_a_file_that_is_named_exactly_is_taken_whatever_its_suffix(folder):
    root = folder(*UNUSUAL, "notes.txt")
    found = find_videos(root, [*UNUSUAL, "tune/b.3g2", "a", "g.mp4"])
    assert found.name_of == {name: name for name in UNUSUAL} | {"tune/b.3g2": "b.3g2"}
    assert list(found.files) == UNUSUAL and all(path.is_file() for path in found.files.values())
    assert found.missing == ["a", "g.mp4"] and not found.unused  # nothing is guessed of them


def test_a_video_goes_before_another_file_of_its_name(folder):
    root = folder("clip", "clip.mp4", "b.pkl", "part/b.mp4", "c.pkl")
    found = find_videos(root, ["clip", "b.pkl", "c.pkl"])
    assert found.name_of == {"clip": "clip.mp4", "b.pkl": "part/b.mp4"}
    assert found.missing == ["c.pkl"]


def test_a_folder_called_as_a_video_is_named_as_what_it_is(folder):
    root = folder("other.mp4", "clip.mp4/0.jpg", "part/frames/0.jpg", "c.mp4/0.jpg", "d/c.mp4")
    found = find_videos(root, ["clip.mp4", "clip", "part/frames", "frames", "c", "lost"])
    assert sorted(found.folders) == ["clip", "clip.mp4", "frames", "part/frames"]
    assert f"{root / 'clip.mp4'}: a folder, and no file" in found.folders["clip"]
    assert found.set_aside == found.folders and found.missing == ["lost"]
    assert found.name_of == {"c": "d/c.mp4"}


def test_links_are_followed_once(folder):
    root = folder("real/clip.mp4")
    (root / "real" / "back").symlink_to(root)
    (root / "aside").symlink_to(root / "real")
    assert len(find_videos(root, ["clip"]).files) == 1


def test_a_folder_without_videos_is_refused(folder, tmp_path):
    with pytest.raises(VideoFilesError, match="no such folder"):
        find_videos(tmp_path / "lost", ["a"])
    with pytest.raises(VideoFilesError, match="holds no video"):
        find_videos(folder("a.txt"), ["a"])


def test_names_may_begin_outside_the_folder_or_name_features(folder):
    """As in Video-LLaVA's file of several folders, and in Video-ChatGPT's converted one."""
    found = find_videos(
        folder("v_aaaaaaaaaaa.mp4", "part/1066.mp4", "other/7.mp4"),
        ["tune/v_aaaaaaaaaaa.mp4", "valley/part/1066.mp4", "aaaaaaaaaaa.pkl", "x/7.mp4"],
    )
    assert found.name_of == {
        "tune/v_aaaaaaaaaaa.mp4": "v_aaaaaaaaaaa.mp4",
        "valley/part/1066.mp4": "part/1066.mp4",
        "aaaaaaaaaaa.pkl": "v_aaaaaaaaaaa.mp4",
    }
    assert found.missing == ["x/7.mp4"]  # another folder's of that name is not it
