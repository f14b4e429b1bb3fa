"""Which frames and which crop a clip takes, over a real store."""

import numpy as np
import pytest

from rvllm_jax.data import clips, video
from rvllm_jax.data.frames import FrameStore, write_store


@pytest.mark.parametrize("num_stored", [1, 2, 7, 8, 9, 20, 61])
@pytest.mark.parametrize(("frames", "step"), [(1, 1), (8, 1), (4, 3), (16, 5)])
def test_choose_takes_every_step_th_frame_and_all_that_a_short_video_has(num_stored, frames, step):
    rng = np.random.default_rng(0)
    expected = min(frames, len(range(0, num_stored, step)))
    for generator in (None, *[rng] * 20):
        indices = clips.choose(num_stored, frames=frames, step=step, rng=generator)
        assert indices.dtype == np.int32
        assert len(indices) == expected == clips.valid_frames(num_stored, frames, step)
        assert (np.diff(indices) == step).all()
        assert indices[0] >= 0 and indices[-1] < num_stored


def test_random_starts_cover_every_place_and_the_centred_one_is_in_the_middle():
    rng = np.random.default_rng(1)
    starts = [clips.choose(12, frames=3, step=4, rng=rng)[0] for _ in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 4  # 12 frames leave starts 0 to 3 for a span of 9
    assert (abs(counts - 1000) < 150).all()
    assert clips.choose(12, frames=3, step=4, rng=None).tolist() == [1, 5, 9]


def test_crop_box_is_uniform_or_centred_and_refuses_what_does_not_fit():
    rng = np.random.default_rng(2)
    boxes = {clips.crop_box(6, 9, 4, rng) for _ in range(500)}
    assert boxes == {(y, x) for y in range(3) for x in range(6)}
    assert clips.crop_box(6, 9, 4, None) == (1, 2)
    with pytest.raises(ValueError, match=r"10 x 10 .* 9 x 30 .*smaller crop"):
        clips.crop_box(9, 30, 10, rng)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two videos: 20 frames, and 3 frames."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(3)
    paths = {}
    for name, count in (("long", 20), ("short", 3)):
        paths[name] = folder / f"{name}.mp4"
        video.write(paths[name], rng.integers(0, 256, (count, 16, 24, 3), np.uint8), fps=10)
    write_store(folder / "store", paths, short_side=None, frames_per_record=4)
    return FrameStore(folder / "store")


def test_a_clip_is_one_crop_of_the_chosen_frames(store):
    whole = store.read("long", np.arange(20))
    for seed in range(10):
        rng = np.random.default_rng(seed)
        clip, mask = clips.load_clip(store, "long", frames=4, step=3, crop=10, rng=rng)
        same = np.random.default_rng(seed)
        indices = clips.choose(20, frames=4, step=3, rng=same)
        y, x = clips.crop_box(16, 24, 10, same)
        np.testing.assert_array_equal(clip, whole[indices, y : y + 10, x : x + 10])
        assert mask.all()


def test_the_centred_clip_needs_no_generator_and_is_always_the_same(store):
    clip, _ = clips.load_clip(store, "long", frames=4, step=3, crop=10, rng=None)
    whole = store.read("long", np.arange(20))
    np.testing.assert_array_equal(clip, whole[5:15:3, 3:13, 7:17])


def test_a_short_video_is_padded_with_zeros_at_the_end(store):
    clip, mask = clips.load_clip(store, "short", frames=6, step=2, crop=16, rng=None)
    whole = store.read("short", np.arange(3))
    np.testing.assert_array_equal(clip[:2], whole[[0, 2], :, 4:20])
    assert mask.tolist() == [True, True, False, False, False, False]
    assert not clip[2:].any() and clip.shape == (6, 16, 16, 3) and clip.dtype == np.uint8


def test_frames_smaller_than_the_crop_are_refused_by_the_videos_name(store):
    with pytest.raises(ValueError, match="video 'short': a crop of 17 x 17"):
        clips.load_clip(store, "short", frames=2, step=1, crop=17, rng=None)
