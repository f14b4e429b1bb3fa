"""Which frames of a stored video make a clip, and which part of each frame."""

import numpy as np

from rvllm_jax.data.frames import FrameStore


def valid_frames(num_stored: int, frames: int, step: int) -> int:
    """How many of a clip's `frames` a video of `num_stored` frames fills, every `step`-th taken."""
    return min(frames, -(-num_stored // step))


def choose(
    num_stored: int, *, frames: int, step: int, rng: np.random.Generator | None
) -> np.ndarray:
    """The stored frames of a clip: every `step`-th from one start.

    The start is uniform over all that leave room for the clip, or, without `rng`, the one in the
    middle. A video shorter than `frames * step` gives as many frames as it has.

    >>> choose(20, frames=3, step=4, rng=None)
    array([ 5,  9, 13], dtype=int32)

    Args:
        num_stored: frames that the store holds of the video, at least 1.
        frames: frames of a full clip.
        step: the clip's interval divided by the stride at which frames were stored.
        rng: None for the centred clip.

    Returns:
        Rising indices `int32[n]`, 1 <= n <= frames.
    """
    if min(num_stored, frames, step) < 1:
        raise ValueError(
            f"a clip of {frames} frames, one in {step}, of a video of {num_stored} stored frames: "
            "all three must be at least 1"
        )
    count = valid_frames(num_stored, frames, step)
    free = num_stored - ((count - 1) * step + 1)
    start = free // 2 if rng is None else int(rng.integers(free + 1))
    return start + step * np.arange(count, dtype=np.int32)


def crop_box(
    height: int, width: int, size: int, rng: np.random.Generator | None
) -> tuple[int, int]:
    """Top-left corner `(y, x)` of a `size` x `size` crop: uniform, or centred without `rng`."""
    if size < 1 or min(height, width) < size:
        raise ValueError(
            f"a crop of {size} x {size} pixels does not fit in frames of {height} x {width} "
            "(height x width): choose a smaller crop, or store the videos with a larger short side"
        )
    if rng is None:
        return (height - size) // 2, (width - size) // 2
    return int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))


def load_clip(
    store: FrameStore,
    name: str,
    *,
    frames: int,
    step: int,
    crop: int,
    rng: np.random.Generator | None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one clip of the video `name`, into `out` if it is given.

    All frames share one crop, so that what moves in the clip is what moved before the camera.
    There is no horizontal flip: it would make "left" and "right" in the answers wrong.

    Returns:
        Frames `uint8[frames, crop, crop, 3]` and `bool[frames]`, True where a frame is real; what
        is missing at the end of a short video is zeros.

    Raises:
        ValueError: the video's frames are smaller than the crop.
        FrameStoreError: the store does not hold the video, or a record of it is damaged.
    """
    entry = store.entry(name)
    indices = choose(entry.num_frames, frames=frames, step=step, rng=rng)
    try:
        y, x = crop_box(entry.height, entry.width, crop, rng)
    except ValueError as error:
        raise ValueError(f"video {name!r}: {error}") from None
    clip = np.empty((frames, crop, crop, 3), np.uint8) if out is None else out
    store.read(name, indices, box=(y, x, crop), out=clip[: len(indices)])
    clip[len(indices) :] = 0
    return clip, np.arange(frames) < len(indices)
