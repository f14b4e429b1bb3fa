"""What is cut, damaged or absurd in a video: measured, used as far as it is enough, and said."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from rvllm_jax.data.prepare.survey import survey
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import decode
from rvllm_jax.data.video.container import MAX_PIXELS, VideoError

FASTSTART = {"options": {"movflags": "+faststart"}}


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 255, (20, 36, 48, 3), np.uint8)


def used(path, **options):
    """(number of frames, note) of a file that is used."""
    decoding = decode.Decoding(path, **options)
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
        with pytest.raises(VideoError, match=r"a\..*damaged or cut.*at least 0\.9 is asked"):
            used(path, min_decoded=0.9)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mp4"])
def test_of_a_file_cut_to_three_tenths_too_little_decodes(tmp_path, write_with, noise, name):
    codec, options = ("libx264", FASTSTART) if name == "a.mp4" else ("mpeg4", {})
    path = write_with(tmp_path / name, np.tile(noise, (10, 1, 1, 1)), codec=codec, **options)
    assert used(path, min_decoded=1.0) == (200, "")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 10])
    with pytest.raises(VideoError, match=r"and 25\.00 s, .* at least 0\.5 is asked"):
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


def test_one_frame_of_a_format_of_videos_is_a_video_and_is_said(probe, tmp_path, write_with, noise):
    path = write_with(tmp_path / "a.mp4", noise[:1])
    assert used(path, min_decoded=1.0) == (1, "one frame only")
    assert probe(path).frames == 1


def patched(path, mark, offset, form, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(mark) + offset, *values)
    path.write_bytes(data)
    return path


def test_a_frame_count_of_a_billion_is_not_believed(probe, tmp_path, write_with, noise):
    # ISO 14496-12, 8.6.1.2: one entry, whose count is wrong.
    path = patched(write_with(tmp_path / "a.mp4", noise), b"stts", 12, ">I", 10**9)
    count, note = used(path, min_decoded=1.0)
    assert count == 20 and "1000000000 frames, which is not believed" in note
    assert probe(path).frames == 0
    path = write_with(tmp_path / "a.avi", noise, codec="mpeg4")
    count, note = used(patched(path, b"strh", 40, "<I", 10**9), min_decoded=1.0)
    assert count == 20 and "not believed" in note


@pytest.mark.parametrize("count", [0, 10**9])
def test_a_table_of_no_samples_or_a_billion_is_refused(tmp_path, write_with, noise, count):
    path = write_with(tmp_path / "a.mp4", noise)
    with pytest.raises(VideoError, match="a.mp4"):
        used(patched(path, b"stsz", 12, ">I", count))
    with pytest.raises(VideoError, match="a.mp4"):
        used(patched(path, b"stsz", 8, ">II", 10, 10**9))  # all of one size, no table


@pytest.mark.parametrize("clock", [b"99999:99:99.000000", b"00099:59:59.000000"])
def test_a_duration_that_the_file_cannot_hold_is_not_believed(
    probe, tmp_path, write_with, noise, clock
):
    path = write_with(tmp_path / "a.webm", noise, codec="libvpx-vp9")
    path.write_bytes(path.read_bytes().replace(b"00:00:02.500000000", clock))
    count, note = used(path, min_decoded=1.0)
    assert count == 20 and " s, which is not believed" in note
    assert probe(path).seconds == 0


@pytest.mark.parametrize("side", [16000, 65535])
def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path, write_with, noise, side):
    path = write_with(tmp_path / "a.gif", noise, codec="gif", pixels="rgb8")
    patched(path, b"GIF89a", 6, "<HH", side, side)
    before = peak_memory()
    with pytest.raises(VideoError, match=f"no frame decodes.*above {MAX_PIXELS:,} pixels"):
        used(path)
    assert peak_memory() - before < side * side // 4


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_long_thin_picture_is_refused_before_memory_is_taken(tmp_path, write_with):
    path = write_with(tmp_path / "a.mp4", np.zeros((1, 16, 4096, 3), np.uint8))
    with pytest.raises(VideoError, match="a frame would have 1048576 x 4096 pixels"):
        next(decode.Decoding(path, short_side=4096))


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_picture_too_long_for_a_jpeg_is_set_aside_and_not_the_preparation(
    tmp_path, write_with, encoding
):
    path = write_with(tmp_path / "a.mp4", np.zeros((2, 4608, 16, 3), np.uint8), codec="mpeg4")
    looked = survey({"a.mp4": path}, thumbnails=1, short_side=256)
    stored = write_store(tmp_path / "frames", {"a.mp4": path}, StoreOptions(encoding=encoding))
    for bad in (looked.bad, stored.bad):
        assert "a frame would have 256 x 73728 pixels" in bad["a.mp4"]


def test_8k_decodes(probe, tmp_path, write_with):
    path = write_with(tmp_path / "8k.mp4", np.full((2, 4320, 7680, 3), 90, np.uint8), codec="mpeg4")
    frames = [frame for frame, _ in decode.Decoding(path, short_side=27)]
    assert [frame.shape for frame in frames] == [(27, 48, 3)] * 2
    assert np.abs(frames[1].astype(int) - 90).max() < 4
    assert probe(path)[1:3] == (7680, 4320)


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
    decoding = decode.Decoding(path)
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
    decoding = decode.Decoding(path)
    seconds = np.array([s for _, s in decoding])
    assert (np.diff(seconds) > 0).all() and decoding.note.startswith("1 times of frames")
    assert np.abs(seconds - np.arange(20) / 8).max() < 0.15  # all behind it were, before
    np.testing.assert_allclose(seconds[10:], np.arange(10, 20) / 8)
