"""What is no video is refused, by path and reason."""

import contextlib
import os
import struct
import tempfile
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from rvllm_jax.data.video import container, decode


def picture(path: Path, codec: str, pixels: str):
    """A picture of the codec's own format under whatever name."""
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = 24, 32, pixels
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image).reformat(format=pixels)))
        out.mux(stream.encode())


def bad_files(folder: Path, clip: Path):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video " * 50)
    (folder / "page.mp4").write_text("<!doctype html><title>404: no such video</title>")
    (folder / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n")
    (folder / "no_index.mp4").write_bytes(clip.read_bytes()[:-400])
    blank = bytearray(clip.read_bytes())
    start, end = blank.index(b"mdat") + 4, blank.index(b"moov") - 4
    blank[start:end] = bytes(end - start)
    (folder / "no_frame.mp4").write_bytes(blank)
    with av.open(str(folder / "sound.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        out.mux(stream.encode(sound))
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    picture(folder / "png.gif", "png", "rgb24")
    picture(folder / "jpeg.mp4", "mjpeg", "yuvj420p")
    picture(folder / "webp.gif", "libwebp", "yuv420p")
    png = (folder / "png.gif").read_bytes()
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 32, 24, 0, 0, 1, 32, len(png), 22) + png
    (folder / "ico.mp4").write_bytes(icon)
    for name, codec, pixels in (("gif", "gif", "rgb8"), ("apng", "apng", "rgb24")):
        for frames in (1, 2):
            with av.open(str(folder / f"{name}{frames}.mp4"), "w", format=name) as out:
                stream = out.add_stream(codec, rate=5)
                stream.height, stream.width, stream.pix_fmt = 24, 32, pixels
                for shade in range(frames):
                    image = np.full((24, 32, 3), 90 * shade, np.uint8)
                    shown = av.VideoFrame.from_ndarray(image).reformat(format=pixels)
                    out.mux(stream.encode(shown))
                out.mux(stream.encode())


@pytest.mark.parametrize(
    "name,reason",
    [
        ("empty.mp4", "0 bytes"),
        ("text.mp4", "not a readable video"),
        ("page.mp4", "not a readable video"),
        ("list.mp4", r"a list of other files \(hls\), not a video"),
        ("no_index.mp4", "not a readable video"),
        ("no_frame.mp4", "no frame decodes"),
        ("sound.wav", "no video stream"),
        ("folder.mp4", "not a file"),
        ("pipe.mp4", "not a file"),
        ("missing.mp4", "no such file"),
        ("png.gif", r"a picture \(png\), not a video"),
        ("jpeg.mp4", r"a picture \(jpeg\), not a video"),
        ("webp.gif", r"a picture \(webp\), not a video"),
        ("ico.mp4", r"a picture \(ico\), not a video"),
        ("gif1.mp4", r"a picture \(gif of one frame\), not a video"),
    ],
)
@pytest.mark.parametrize("read", [list, next])
def test_what_is_no_video_is_refused_by_path_and_reason(tmp_path, clip, read, name, reason):
    bad_files(tmp_path, clip)
    with pytest.raises(container.VideoError, match=reason) as raised:
        read(decode.Decoding(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
    assert any(advice in str(raised.value) for advice in ("Replace", "Check"))


LISTS = {
    "concat": "ffconcat version 1.0\nfile other.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD><BaseURL>other.mp4</BaseURL></MPD>',
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8"])
@pytest.mark.parametrize("first", ["", "\n", "\ufeff"])
def test_a_list_of_files_is_refused_and_none_of_them_is_opened(tmp_path, kind, suffix, first):
    (tmp_path / f"list.{suffix}").write_text(first + LISTS[kind])
    os.mkfifo(tmp_path / "other.mp4")  # has no writer until somebody reads it
    opened, over = [], threading.Event()

    def watch():
        while not over.wait(0.002):
            with contextlib.suppress(OSError):
                os.close(os.open(tmp_path / "other.mp4", os.O_WRONLY | os.O_NONBLOCK))
                opened.append(True)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(container.VideoError, match=rf"a list of other files \({kind}\)"):
            list(decode.Decoding(tmp_path / f"list.{suffix}"))
    finally:
        over.set()
        watcher.join()
    assert not opened


def test_unreadable_file_names_the_permission(clip):
    with tempfile.TemporaryDirectory() as folder:  # one that others may enter
        os.chmod(folder, 0o755)
        path = Path(folder, "clip.mp4")
        path.write_bytes(clip.read_bytes())
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(container.VideoError, match="no permission"):
                list(decode.Decoding(path))
        finally:
            os.seteuid(user)


def test_a_name_that_is_not_utf_8(clip):
    name = os.fsencode(clip.parent) + b"/\xff\xfe.mp4"
    os.rename(clip, name)
    assert len(list(decode.Decoding(Path(os.fsdecode(name))))) == 20


@pytest.mark.parametrize("name", ["gif2.mp4", "apng2.mp4"])
def test_a_picture_that_moves_is_a_video(probe, tmp_path, clip, name):
    bad_files(tmp_path, clip)
    assert len(list(decode.Decoding(tmp_path / name))) == 2
    assert probe(tmp_path / name).width == 32
