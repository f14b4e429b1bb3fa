"""Clips read from a real store: one crop, padding, copies, mirroring, and real files."""

from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.batches import clips
from rvllm_jax.data.batches.clips import FrameSampling, View
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import encode

REAL = Path(__file__).parents[4] / "shared" / "data" / "real_videos"
COUNTS = {"one": 1, "two": 2, "short": 3, "odd": 7, "long": 20}


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def store(request, tmp_path_factory):
    """Videos of 1 to 20 frames at 10 a second."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(3)
    paths = {name: folder / f"{name}.mp4" for name in COUNTS}
    for name, path in paths.items():
        encode.write(path, rng.integers(0, 256, (COUNTS[name], 16, 24, 3), np.uint8), fps=10)
    write_store(
        folder / "store",
        paths,
        StoreOptions(short_side=None, frames_per_record=4, encoding=request.param),
    )
    return FrameStore(folder / "store")


def test_a_clip_is_one_crop_of_the_chosen_frames(store):
    whole = store.read("long", np.arange(20))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clip, mask = clips.load_clip(store, "long", FrameSampling(4, 3), crop=10, rng=rng)
        same = np.random.default_rng(seed)
        indices = clips.choose(store.timestamps("long"), FrameSampling(4, 3), same)
        y, x = clips.crop_box(16, 24, 10, same)
        np.testing.assert_array_equal(clip, whole[indices, y : y + 10, x : x + 10])
        assert mask.all()


def test_the_centred_clip_needs_no_generator_and_is_always_the_same(store):
    clip, _ = clips.load_clip(store, "long", FrameSampling(4, 3), crop=10, rng=None)
    whole = store.read("long", np.arange(20))
    np.testing.assert_array_equal(clip, whole[5:15:3, 3:13, 7:17])


def test_a_short_video_is_padded_with_zeros_at_the_end(store):
    clip, mask = clips.load_clip(store, "short", FrameSampling(6, 2), crop=16, rng=None)
    whole = store.read("short", np.arange(3))
    np.testing.assert_array_equal(clip[:2], whole[[0, 2], :, 4:20])
    assert mask.tolist() == [True, True, False, False, False, False]
    assert not clip[2:].any() and clip.shape == (6, 16, 16, 3) and clip.dtype == np.uint8


def test_a_short_video_is_stretched_or_starts_again(store):
    whole = store.read("short", np.arange(3))[:, :, 4:20]
    sizes = dict(crop=16, rng=None)
    clip, mask = clips.load_clip(store, "short", FrameSampling(6, 2, "stretch"), **sizes)
    np.testing.assert_array_equal(clip, whole[[0, 0, 1, 1, 2, 2]])
    assert mask.all()
    clip, mask = clips.load_clip(store, "short", FrameSampling(6, 2, "loop"), **sizes)
    np.testing.assert_array_equal(clip, whole[[0, 2, 0, 2, 0, 2]])
    assert mask.all()


def test_a_long_video_can_be_spread_over_the_clip(store):
    clip, mask = clips.load_clip(
        store, "long", FrameSampling(5, 1, long="spread"), crop=16, rng=None
    )
    whole = store.read("long", np.arange(20))[:, :, 4:20]
    np.testing.assert_array_equal(clip, whole[[1, 5, 9, 13, 17]])
    assert mask.all()


@pytest.mark.parametrize("frames", [1, 2, 25, 200])
@pytest.mark.parametrize("short", clips.SHORT)
@pytest.mark.parametrize("long", clips.LONG)
def test_any_length_of_clip_and_video(store, frames, short, long):
    sampling = FrameSampling(frames, 3, short, long)
    for name, count in COUNTS.items():
        whole = store.read(name, np.arange(count))
        times = store.timestamps(name)
        rng = np.random.default_rng(frames)
        clip, mask = clips.load_clip(store, name, sampling, crop=16, rng=rng)
        assert clip.shape == (frames, 16, 16, 3) and mask.sum() == sampling.filled(count)
        assert not (np.diff(mask.astype(int)) > 0).any() and not clip[~mask].any()
        how = dict(sampling=sampling, crop=16, views="5x5")
        for view in clips.evaluation_views(times, 16, 24, **how)[::6]:
            clip, mask = clips.read_view(store, name, view, frames=frames)
            x = view.box[1]
            np.testing.assert_array_equal(clip[mask], whole[view.indices][:, :, x : x + 16])
            assert mask.sum() == len(view.indices)


def test_a_clip_is_written_where_it_is_wanted(store):
    batch = np.full((2, 6, 16, 16, 3), 7, np.uint8)
    sizes = dict(sampling=FrameSampling(6, 2), crop=16, rng=None)
    clip, _ = clips.load_clip(store, "short", **sizes, out=batch[1])
    assert clip.base is batch
    np.testing.assert_array_equal(batch[1], clips.load_clip(store, "short", **sizes)[0])
    assert (batch[0] == 7).all()


def test_half_of_the_training_clips_are_mirrored_as_a_whole_where_asked(store):
    sizes = dict(sampling=FrameSampling(4, 3), crop=10)
    mirrored = 0
    for seed in range(60):
        plain, flipped = (
            clips.load_clip(store, "long", **sizes, flip=flip, rng=np.random.default_rng(seed))[0]
            for flip in (False, True)
        )
        assert (flipped == plain).all() or (flipped == plain[:, :, ::-1]).all()
        mirrored += (flipped != plain).any()
    assert 15 < mirrored < 45
    centred = [clips.load_clip(store, "long", **sizes, flip=f, rng=None)[0] for f in (False, True)]
    np.testing.assert_array_equal(*centred)


def test_mirroring_that_is_off_draws_no_number(store):
    rng, same = (np.random.default_rng(4) for _ in range(2))
    clips.load_clip(store, "long", FrameSampling(4, 3), crop=10, rng=rng)
    clips.choose(store.timestamps("long"), FrameSampling(4, 3), same)
    clips.crop_box(16, 24, 10, same)
    assert rng.bit_generator.state == same.bit_generator.state


def test_frames_smaller_than_the_crop_are_refused_by_the_videos_name(store):
    with pytest.raises(ValueError, match="video 'short': a crop of 17 x 17"):
        clips.load_clip(store, "short", FrameSampling(2, 1), crop=17, rng=None)


def test_a_frame_shown_many_times_is_read_once(store, monkeypatch):
    read, asked = store.read, []
    monkeypatch.setattr(store, "read", lambda *a, **k: asked.append(len(a[1])) or read(*a, **k))
    view = View(np.repeat(np.arange(3, dtype=np.int32), 40), (0, 0, 16))
    clip, mask = clips.read_view(store, "short", view, frames=120)
    assert asked == [3] and mask.all()
    whole = read("short", np.arange(3))[:, :, :16]
    np.testing.assert_array_equal(clip, whole.repeat(40, 0))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: the real clips are not there")
def test_a_real_file_of_variable_rate_is_sampled_by_its_times(tmp_path):
    """Its 32 frames are 1/30 s apart but for one distance of 2/30 s."""
    write_store(tmp_path / "store", {"v": REAL / "pool_short.mp4"}, StoreOptions(short_side=32))
    store = FrameStore(tmp_path / "store")
    times, rate = store.timestamps("v"), store.entry("v").fps
    distances = np.diff(times)
    assert len(times) == 32 and distances.max() > 1.9 * distances.min()
    differ = 0
    for frames, step in ((6, 6), (6, 5), (8, 4), (10, 3), (15, 2), (30, 1), (1, 6)):
        sampling = FrameSampling(frames, step)
        for start in range(sampling.free(32) + 1):
            found = clips.nearest(times, sampling.places(32, start))
            wanted = times[0] + (start + step * np.arange(frames)) / rate
            off = abs(times[found] - wanted)
            np.testing.assert_allclose(off, abs(times[:, None] - wanted).min(0), atol=1e-6)
            assert off.max() <= distances.max() / 2 + 1e-6
            differ += (found != start + step * np.arange(frames)).any()
    assert differ  # counting frames would show others
