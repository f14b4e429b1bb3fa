import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.video import decode, encode

REAL = Path(__file__).resolve().parents[3].parent / "shared/data/real_videos"


def read(path, **options):
    frames, seconds = zip(*decode.Decoding(path, **options), strict=True)
    return np.stack(frames), np.array(seconds)


def test_written_frames_come_back_in_order_with_their_times(clip, moving_bar):
    frames, seconds = read(clip)
    assert frames.dtype == np.uint8 and frames.shape == (20, 36, 48, 3)
    error = np.abs(frames.astype(int) - moving_bar())
    assert error.mean() < 6 and error.mean((1, 2, 3)).max() < 12
    np.testing.assert_allclose(seconds, np.arange(20) / 8, atol=1e-6)


def test_stride_takes_every_nth_frame(clip):
    frames, seconds = read(clip)
    every_third, their_seconds = read(clip, stride=3)
    np.testing.assert_array_equal(every_third, frames[::3])
    np.testing.assert_array_equal(their_seconds, seconds[::3])


def test_every_frame_of_the_file_is_a_sign_of_life(clip):
    seen = []
    decoding = decode.Decoding(clip, stride=8, on_frame=lambda: seen.append(decoding.info.frames))
    assert len(list(decoding)) == 3 and seen == [20] * 20


@pytest.mark.parametrize("short_side,shape", [(18, (18, 24)), (72, (72, 96)), (7, (7, 9))])
def test_short_side_is_met_exactly_and_the_aspect_kept(clip, short_side, shape):
    frames, _ = read(clip, short_side=short_side)
    assert frames.shape[1:3] == shape
    red = (frames[5, shape[0] // 2, :, 0].astype(int) - frames[5, shape[0] // 2, :, 2]) > 80
    assert abs(np.nonzero(red)[0].mean() / shape[1] - 12.5 / 48) < 0.05


def test_portrait_videos_have_their_width_as_short_side(tmp_path, moving_bar):
    encode.write(tmp_path / "tall.mp4", moving_bar(4, 64, 32), fps=8)
    assert read(tmp_path / "tall.mp4", short_side=20)[0].shape[1:3] == (40, 20)


@pytest.mark.parametrize(
    "name,codec,pixels",
    [("a.gif", "gif", "rgb8"), ("a.webm", "libvpx-vp9", "yuv420p"), ("a.avi", "mpeg4", "yuv420p")],
)
def test_other_containers(tmp_path, name, codec, pixels, moving_bar, write_with):
    path = write_with(tmp_path / name, moving_bar(), codec=codec, pixels=pixels)
    frames, seconds = read(path)
    assert frames.shape == (20, 36, 48, 3)
    redness = frames[..., 0].astype(int) - frames[..., 2]
    bars = [np.nonzero(image.mean(0) > 80)[0].mean() for image in redness]  # gif has few colours
    np.testing.assert_allclose(bars, 2 * np.arange(20) + 2.5, atol=1.5)
    np.testing.assert_allclose(seconds, np.arange(20) / 8, atol=0.011)  # gif counts in 10 ms


def test_variable_frame_rate_keeps_its_times(tmp_path, moving_bar, write_with):
    times = np.cumsum([0, 40, 500, 40, 40, 900, 33, 33, 33, 125])
    path = write_with(tmp_path / "vfr.mp4", moving_bar(10), times=times.tolist())
    np.testing.assert_allclose(read(path)[1], times / 1000, atol=2e-3)


def test_times_increase_and_sizes_stay_where_a_file_restarts(tmp_path, moving_bar, write_with):
    first = write_with(tmp_path / "a.ts", moving_bar(10), format="mpegts")
    second = write_with(tmp_path / "b.ts", moving_bar(10, 64, 32), format="mpegts")
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    frames, seconds = read(both)
    assert frames.shape[1:] == (36, 48, 3) and len(frames) > 10
    assert (np.diff(seconds) > 0).all()


def test_a_cut_file_yields_what_decodes_and_is_named(tmp_path, caplog, write_with):
    noise = np.random.default_rng(0).integers(0, 255, (20, 36, 48, 3), np.uint8)
    path = write_with(tmp_path / "cut.mp4", noise, options={"movflags": "+faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 4 // 5])
    with caplog.at_level(logging.WARNING):
        frames, _ = read(path)
    assert 3 < len(frames) < 20
    assert str(path) in caplog.text and "declares 20 frames" in caplog.text


def test_a_whole_file_gives_no_warning(clip, caplog):
    with caplog.at_level(logging.WARNING):
        read(clip, stride=4)
    assert not caplog.records


@pytest.mark.parametrize("options", [{"stride": 0}, {"short_side": 0}])
def test_decode_refuses_impossible_arguments_at_once(clip, options):
    with pytest.raises(ValueError, match="stride >= 1"):
        decode.Decoding(clip, **options)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real videos at {REAL}")
def test_real_videos_decode_with_increasing_times(caplog):
    names = {record["video"] for record in json.loads((REAL / "llava.json").read_text())}
    assert len(names) == 12
    for name in sorted(names):
        frames, seconds = read(REAL / name, stride=8, short_side=32)
        assert len(frames) >= 4 and min(frames.shape[1:3]) == 32, name
        assert (np.diff(seconds) > 0).all(), name
        assert frames.std() > 10, name
    assert not caplog.records
