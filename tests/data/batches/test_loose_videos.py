"""The clips of loose files are those of a frame store."""

import numpy as np
import pytest

from rvllm_jax.data.batches.clips import FrameSampling, evaluation_views, read_view
from rvllm_jax.data.batches.loose_videos import load_video, load_videos
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import encode
from rvllm_jax.data.video.container import VideoError

OPTIONS = StoreOptions(stride=2, short_side=24, encoding="jpeg", frames_per_record=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loose")
    rng = np.random.default_rng(1)
    for name, count in (("long", 60), ("short", 7)):
        frames = rng.integers(0, 255, (count, 32, 40, 3), dtype=np.uint8)
        encode.write(folder / f"{name}.mp4", frames, fps=10)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.parametrize("views", ["1x1", "5x5"])
@pytest.mark.parametrize("name", ["long", "short"])
def test_frames_are_those_of_a_prepared_store(folder, tmp_path, name, views):
    """Losses of JPEG, padding, times and crops included."""
    path, sampling = folder / f"{name}.mp4", FrameSampling(5, 3, "pad", "window")
    seen = load_video(path, sampling, OPTIONS, crop=20, views=views)
    write_store(tmp_path, {"v": path}, OPTIONS)
    store = FrameStore(tmp_path)
    times, entry = store.timestamps("v"), store.entry("v")
    how = dict(sampling=sampling, crop=20, views=views)
    chosen = evaluation_views(times, entry.height, entry.width, **how)
    assert seen.frames.shape == (len(chosen), 5, 20, 20, 3)
    assert seen.counts.sum() == {"1x1": 1, "5x5": 25}[views]
    for clip, view in enumerate(chosen):
        frames, mask = read_view(store, "v", view, frames=5)
        np.testing.assert_array_equal(seen.frames[clip], frames)
        np.testing.assert_array_equal(seen.mask[clip], mask)
        np.testing.assert_array_equal(seen.times[clip, mask], times[view.indices])
        assert np.isnan(seen.times[clip, ~mask]).all()
    assert (name == "short") == (not seen.mask.all())
    assert (seen.info.width, seen.info.height) == (40, 32)


def test_each_file_is_seen_or_says_why_not(folder):
    paths = [folder / name for name in ("broken.mp4", "long.mp4", "absent.mp4", ".", "short.mp4")]
    options = dict(crop=20, views="1x1", workers=0, at_once=2)
    seen = list(load_videos(paths, FrameSampling(5, 3), OPTIONS, **options))
    for at, message in ((0, "broken.mp4: .*Replace"), (2, "is not there"), (3, "is a folder")):
        assert isinstance(seen[at], VideoError)
        with pytest.raises(VideoError, match=message):
            raise seen[at]
    assert seen[1].mask.all() and not seen[4].mask.all()
    with pytest.raises(VideoError, match="a crop of 30 x 30 pixels does not fit"):
        load_video(paths[1], FrameSampling(5, 3), OPTIONS, crop=30, views="1x1")
