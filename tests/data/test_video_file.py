"""What is no video, or only part of one: refused or used, and said by path and reason."""

import contextlib
import os
import struct
import tempfile
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from rvllm_jax.data import video
from rvllm_jax.data.video_file import MAX_PIXELS

FASTSTART = {"options": {"movflags": "+faststart"}}


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
@pytest.mark.parametrize("read", [lambda path: list(video.decode(path)), video.probe])
def test_what_is_no_video_is_refused_by_path_and_reason(tmp_path, clip, read, name, reason):
    bad_files(tmp_path, clip)
    with pytest.raises(video.VideoError, match=reason) as raised:
        read(tmp_path / name)
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
        with pytest.raises(video.VideoError, match=rf"a list of other files \({kind}\)"):
            list(video.decode(tmp_path / f"list.{suffix}"))
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
            with pytest.raises(video.VideoError, match="no permission"):
                list(video.decode(path))
        finally:
            os.seteuid(user)


def test_a_name_that_is_not_utf_8(clip):
    name = os.fsencode(clip.parent) + b"/\xff\xfe.mp4"
    os.rename(clip, name)
    assert len(list(video.decode(Path(os.fsdecode(name))))) == 20


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 255, (20, 36, 48, 3), np.uint8)


def used(path, **options):
    """(number of frames, note) of a file that is used."""
    decoding = video.Decoding(path, **options)
    count = sum(1 for _ in decoding)
    return count, decoding.note


@pytest.mark.parametrize(
    "name,codec,pixels,options",
    [
        ("a.mp4", "libx264", "yuv420p", FASTSTART),
        ("a.webm", "libvpx-vp9", "yuv420p", {}),
        ("a.mkv", "libx264", "yuv420p", {}),
        ("a.avi", "mpeg4", "yuv420p", {}),
        ("a.gif", "gif", "rgb8", {}),
    ],
)
def test_of_a_cut_file_what_decodes_is_used_if_it_is_enough(
    tmp_path, write_with, noise, name, codec, pixels, options
):
    path = write_with(tmp_path / name, noise, codec=codec, pixels=pixels, **options)
    assert used(path, min_decoded=1.0) == (20, "")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 4 // 5])
    count, note = used(path, min_decoded=0.2)
    assert 3 < count < 20
    assert "damaged or cut" in note and f" {count} frames" in note
    if name != "a.gif":  # which declares no length: all that decodes is used
        path.write_bytes(data[: len(data) // 3])
        with pytest.raises(video.VideoError, match=r"a\..*damaged or cut.*at least 0\.9 is asked"):
            used(path, min_decoded=0.9)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mp4"])
def test_of_a_file_cut_to_three_tenths_too_little_decodes(tmp_path, write_with, noise, name):
    codec, options = ("libx264", FASTSTART) if name == "a.mp4" else ("mpeg4", {})
    path = write_with(tmp_path / name, np.tile(noise, (10, 1, 1, 1)), codec=codec, **options)
    assert used(path, min_decoded=1.0) == (200, "")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 10])
    with pytest.raises(video.VideoError, match=r"and 25\.00 s, .* at least 0\.5 is asked"):
        used(path, min_decoded=0.5)
    path.write_bytes(data[: len(data) * 7 // 10])
    count, note = used(path, min_decoded=0.5)
    assert 100 < count < 145 and "damaged or cut" in note


def test_frames_that_an_edit_list_hides_are_not_missing_from_a_damaged_file(
    tmp_path, write_with, noise
):
    path = write_with(tmp_path / "a.mp4", noise)
    data = path.read_bytes()
    at = data.index(b"elst")  # ISO 14496-12, 8.6.6: version, entries, duration, start, rate
    _, entries, duration, _, _ = struct.unpack_from(">5I", data, at + 4)
    assert entries == 1
    patched(path, b"elst", 12, ">I", duration // 4)
    count, note = used(path, min_decoded=0.9)
    assert 4 <= count < 10 and note == ""
    data = bytearray(path.read_bytes())
    first = data.index(b"mdat") + 4
    data[first + 2000 : first + 6000] = b"\xff" * 4000  # of frames that are shown
    path.write_bytes(data)
    # Of 20 frames a tenth, of the seconds that are shown two fifths.
    count, note = used(path, min_decoded=0.3)
    assert count == 2 and "damaged or cut: it declares 20 frames and 0.62 s" in note


def test_sound_that_outlasts_the_picture_is_no_cut(tmp_path, noise):
    path = tmp_path / "long_sound.mp4"
    with av.open(str(path), "w") as out:
        picture, sound = out.add_stream("libx264", rate=8), out.add_stream("aac", rate=8000)
        picture.height, picture.width, picture.pix_fmt = 36, 48, "yuv420p"
        for array in noise:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(array)))
        out.mux(picture.encode())
        for number in range(80):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * number
            out.mux(sound.encode(frame))
        out.mux(sound.encode())
    assert used(path, min_decoded=1.0) == (20, "")


@pytest.mark.parametrize("name", ["gif2.mp4", "apng2.mp4"])
def test_a_picture_that_moves_is_a_video(tmp_path, clip, name):
    bad_files(tmp_path, clip)
    assert used(tmp_path / name, min_decoded=1.0)[0] == 2
    assert video.probe(tmp_path / name).width == 32


def test_one_frame_of_a_format_of_videos_is_a_video_and_is_said(tmp_path, write_with, noise):
    path = write_with(tmp_path / "a.mp4", noise[:1])
    assert used(path, min_decoded=1.0) == (1, "one frame only")
    assert video.probe(path).frames == 1


def patched(path, mark, offset, form, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(mark) + offset, *values)
    path.write_bytes(data)
    return path


def test_a_frame_count_of_a_billion_is_not_believed(tmp_path, write_with, noise):
    # ISO 14496-12, 8.6.1.2: one entry, whose count is wrong.
    path = patched(write_with(tmp_path / "a.mp4", noise), b"stts", 12, ">I", 10**9)
    count, note = used(path, min_decoded=1.0)
    assert count == 20 and "1000000000 frames, which is not believed" in note
    assert video.probe(path).frames == 0
    path = write_with(tmp_path / "a.avi", noise, codec="mpeg4")
    count, note = used(patched(path, b"strh", 40, "<I", 10**9), min_decoded=1.0)
    assert count == 20 and "not believed" in note


@pytest.mark.parametrize("count", [0, 10**9])
def test_a_table_of_no_samples_or_a_billion_is_refused(tmp_path, write_with, noise, count):
    path = write_with(tmp_path / "a.mp4", noise)
    with pytest.raises(video.VideoError, match="a.mp4"):
        used(patched(path, b"stsz", 12, ">I", count))
    with pytest.raises(video.VideoError, match="a.mp4"):
        used(patched(path, b"stsz", 8, ">II", 10, 10**9))  # all of one size, no table


@pytest.mark.parametrize("clock", [b"99999:99:99.000000", b"00099:59:59.000000"])
def test_a_duration_that_the_file_cannot_hold_is_not_believed(tmp_path, write_with, noise, clock):
    path = write_with(tmp_path / "a.webm", noise, codec="libvpx-vp9")
    path.write_bytes(path.read_bytes().replace(b"00:00:02.500000000", clock))
    count, note = used(path, min_decoded=1.0)
    assert count == 20 and " s, which is not believed" in note
    assert video.probe(path).seconds == 0


@pytest.mark.parametrize("side", [16000, 65535])
def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path, write_with, noise, side):
    path = write_with(tmp_path / "a.gif", noise, codec="gif", pixels="rgb8")
    patched(path, b"GIF89a", 6, "<HH", side, side)
    before = peak_memory()
    with pytest.raises(video.VideoError, match=f"no frame decodes.*above {MAX_PIXELS:,} pixels"):
        used(path)
    assert peak_memory() - before < side * side // 4


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_long_thin_picture_is_refused_before_memory_is_taken(tmp_path, write_with):
    path = write_with(tmp_path / "a.mp4", np.zeros((1, 16, 4096, 3), np.uint8))
    with pytest.raises(video.VideoError, match="a frame would have 1048576 x 4096 pixels"):
        next(video.decode(path, short_side=4096))


def test_8k_decodes(tmp_path, write_with):
    path = write_with(tmp_path / "8k.mp4", np.full((2, 4320, 7680, 3), 90, np.uint8), codec="mpeg4")
    frames = [frame for frame, _ in video.decode(path, short_side=27)]
    assert [frame.shape for frame in frames] == [(27, 48, 3)] * 2
    assert np.abs(frames[1].astype(int) - 90).max() < 4
    assert video.probe(path)[1:3] == (7680, 4320)


def test_times_that_do_not_increase_are_mended_and_said(tmp_path, write_with, noise):
    times = (np.arange(20) * 125).tolist()
    path = write_with(tmp_path / "a.mkv", noise, codec="mjpeg", pixels="yuvj420p", times=times)
    assert used(path) == (20, "")
    data = bytearray(path.read_bytes())
    at = [i for i in range(len(data) - 4) if data[i] == 0xA3 and data[i + 3 : i + 4] == b"\x81"]
    assert len(at) >= 10
    for i in at[6:9]:  # Matroska's SimpleBlock: track, then the time of 16 bits
        data[i + 4 : i + 6] = b"\0\0"
    path.write_bytes(data)
    decoding = video.Decoding(path)
    seconds = [s for _, s in decoding]
    assert len(seconds) == 20 and (np.diff(seconds) > 0).all()
    assert " times of frames are missing or do not increase" in decoding.note


def test_a_frame_that_is_late_by_one_does_not_delay_those_behind_it(tmp_path, write_with, noise):
    """As in MPEG-PS, where FFmpeg makes up times that two frames in disorder have."""
    times = (np.arange(20) * 125).tolist()
    path = write_with(tmp_path / "a.mkv", noise, codec="mjpeg", pixels="yuvj420p", times=times)
    data = bytearray(path.read_bytes())
    at = [i + 4 for i in range(len(data) - 4) if data[i] == 0xA3 and data[i + 3] == 0x81]
    a, b = (slice(i, i + 2) for i in at[8:10])  # Matroska's times of 16 bits
    data[a], data[b] = data[b], data[a]
    path.write_bytes(data)
    decoding = video.Decoding(path)
    seconds = np.array([s for _, s in decoding])
    assert (np.diff(seconds) > 0).all() and decoding.note.startswith("1 times of frames")
    assert np.abs(seconds - np.arange(20) / 8).max() < 0.15  # all behind it were, before
    np.testing.assert_allclose(seconds[10:], np.arange(10, 20) / 8)
