"""Which frames of a stored video make a clip, and which square of each frame.

A clip's frames are chosen in time. A place is a time in units of the video's average distance
between stored frames: place p is p / fps seconds behind the first frame, so that one in `step`
places is one in `interval` frames at the file's average rate. The frame shown at a place is the one
whose timestamp is nearest; at a constant rate, place p is stored frame p.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rvllm_jax.data.store.reader import FrameStore

SHORT = ("stretch", "pad", "loop")  # values of config.data.short
LONG = ("window", "spread")  # values of config.data.long
# Test clips of a video, by starts x crops; the paper says only that there are 25.
VIEWS = {"1x1": (1, 1), "25x1": (25, 1), "5x5": (5, 5)}  # test clips of a video: starts, crops

_TIE = 1e-6  # places; below it rounding would decide which of two frames is nearer


@dataclasses.dataclass(frozen=True)
class FrameSampling:
    """How the frames of a clip are taken from a video.

    frames: T, of a full clip. step: places from one to the next, which is the clip's interval
    divided by the stride at which frames were stored.
    short: what becomes of a video in which T frames at this step do not fit. "stretch": T frames
    spread over the whole video; "pad": as many as fit, and padding at the end; "loop": as many as
    fit, again and again.
    long: of a video in which they fit. "window": T frames at this step, from one start; "spread": T
    frames spread over the whole video.
    Raises ValueError for other values.
    """

    frames: int
    step: int
    short: str = "pad"
    long: str = "window"

    def __post_init__(self):
        if min(self.frames, self.step) < 1:
            raise ValueError(
                f"a clip of {self.frames} frames, one in {self.step}: both must be at least 1"
            )
        for key, values in (("short", SHORT), ("long", LONG)):
            if getattr(self, key) not in values:
                raise ValueError(
                    f"config.data.{key} is {getattr(self, key)!r}; expected one of {values}"
                )

    def filled(self, num_stored: int) -> int:
        """How many of a clip's frames a video of `num_stored` frames fills."""
        return self._in_window(num_stored) if self._way(num_stored) == "pad" else self.frames

    def free(self, num_stored: int) -> int | None:
        """How many places a clip can start behind the first; None where it is spread."""
        if self._way(num_stored) in ("stretch", "spread"):
            return None
        return num_stored - ((self._in_window(num_stored) - 1) * self.step + 1)

    def places(self, num_stored: int, start: float) -> np.ndarray:
        """The places of a clip's frames, `float64[filled]`.

        start: the place of the first frame, 0 <= start <= free. Where the clip is spread, the
            video's time is cut into T equal parts, and it is the offset of each frame in its part,
            0 <= start < 1.
        """
        if self.free(num_stored) is None:
            return (np.arange(self.frames) + start) * (num_stored / self.frames) - 0.5
        number = np.arange(self.filled(num_stored))
        return start + self.step * (number % self._in_window(num_stored)).astype(np.float64)

    def _way(self, num_stored: int) -> str:
        # The average rate makes this one test of time, whatever the single distances are.
        return self.long if num_stored > (self.frames - 1) * self.step else self.short

    def _in_window(self, num_stored: int) -> int:
        return min(self.frames, -(-num_stored // self.step))


class View(NamedTuple):
    """One clip of a video: its frames and one square of them."""

    indices: np.ndarray  # int32[n], 1 <= n <= T: stored frames; what is missing is padding
    box: tuple[int, int, int]  # y, x, size of the square, pixels
    flip: bool = False  # mirrored, left to right
    count: int = 1  # how many test clips are this one


def nearest(times: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The frame whose time is nearest to each place; of two equally near, the earlier.

    times: `float64[n]` seconds, rising. places: `float64[m]`, of any value.
    Returns indices `int32[m]` into `times`.
    """
    if len(times) == 1:
        return np.zeros(len(places), np.int32)
    shown = (times - times[0]) * ((len(times) - 1) / (times[-1] - times[0]))
    right = np.searchsorted(shown, places).clip(1, len(times) - 1)
    earlier = places - shown[right - 1] <= shown[right] - places + _TIE
    return (right - earlier).astype(np.int32)


def choose(
    times: np.ndarray, sampling: FrameSampling, rng: np.random.Generator | None
) -> np.ndarray:
    """The stored frames of a clip from a random start, or, without `rng`, from the middle one.

    >>> choose(np.arange(20) / 25, FrameSampling(frames=3, step=4), None)
    array([ 5,  9, 13], dtype=int32)

    Args:
        times: when each stored frame is shown, `float64[n]` seconds, rising, n >= 1.
        rng: None for the centred clip.

    Returns:
        Indices `int32[m]`, never falling but where a short video starts again ("loop").
    """
    free = sampling.free(len(times))
    if free is None:
        start = 0.5 if rng is None else rng.random()
    else:
        start = free // 2 if rng is None else int(rng.integers(free + 1))
    return nearest(times, sampling.places(len(times), start))


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


def evaluation_views(
    times: np.ndarray, height: int, width: int, *, sampling: FrameSampling, crop: int, views: str
) -> list[View]:
    """The test clips of a video, each that differs once, with its count; all are starts x crops.

    "1x1" is the centred clip. Starts are spread evenly from the first that is possible to the last;
    where the clip is spread over the video and has no start to choose, as many offsets are within
    one sampling step. The middle one is the centred clip's. One crop is the centre, five are the
    centre and the corners.

    Args:
        times: when each stored frame is shown, `float64[n]` seconds, rising, n >= 1.
        height, width: of the stored frames, pixels.
        crop: side of the square, pixels.
        views: a key of VIEWS.

    Raises:
        ValueError: unknown `views`, or frames smaller than the crop.
    """
    if views not in VIEWS:
        raise ValueError(f"test clips {views!r} are unknown; expected one of {tuple(VIEWS)}")
    count, crops = VIEWS[views]
    y, x = crop_box(height, width, crop, None)
    bottom, right = height - crop, width - crop
    corners = [(y, x), (0, 0), (0, right), (bottom, 0), (bottom, right)][:crops]
    distinct: dict[tuple, View] = {}
    for start in _even_starts(sampling.free(len(times)), count):
        indices = nearest(times, sampling.places(len(times), start))
        for corner in corners:
            key = indices.tobytes(), corner
            view = distinct.get(key) or View(indices, (*corner, crop), count=0)
            distinct[key] = view._replace(count=view.count + 1)
    return list(distinct.values())


def _even_starts(free: int | None, count: int) -> list[float]:
    if free is None:
        return [(number + 0.5) / count for number in range(count)]
    if count == 1:
        return [free // 2]
    last = count - 1  # free * number / last, to the nearest integer, halves down as in free // 2
    return [-((last - 2 * number * free) // (2 * last)) for number in range(count)]


def load_clip(
    store: FrameStore,
    name: str,
    sampling: FrameSampling,
    *,
    crop: int,
    rng: np.random.Generator | None,
    flip: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a training clip of the video `name`: start and crop by `rng`, or both centred.

    All frames share one crop, so that what moves in the clip is what moved before the camera.
    crop: side of the square, pixels. flip: mirrors one clip in two, never a centred one; it makes
    "left" and "right" in the answers wrong. out, and what is returned and raised: as of
    `read_view`; ValueError where the video's frames are smaller than the crop.
    """
    entry = store.entry(name)
    indices = choose(store.timestamps(name), sampling, rng)
    try:
        y, x = crop_box(entry.height, entry.width, crop, rng)
    except ValueError as error:
        raise ValueError(f"video {name!r}: {error}") from None
    mirrored = flip and rng is not None and bool(rng.integers(2))
    view = View(indices, (y, x, crop), mirrored)
    return read_view(store, name, view, frames=sampling.frames, out=out)


def read_view(
    store: FrameStore, name: str, view: View, *, frames: int, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a clip of `frames` frames of the video `name`.

    out: uint8[frames, size, size, 3] to write to; made if None.

    Returns:
        Frames `uint8[frames, size, size, 3]` and `bool[frames]`, True where a frame is real; what
        is missing at the end is zeros.

    Raises:
        FrameStoreError: the store does not hold the video, or a record of it is damaged.
    """
    size, count = view.box[2], len(view.indices)
    if out is None:
        out = np.empty((frames, size, size, 3), np.uint8)
    distinct, which = np.unique(view.indices, return_inverse=True)
    store.read(name, distinct, box=view.box, out=out[: len(distinct)])
    # A frame shown several times is read once. Its copies lie behind it, so they are made from the
    # end: the frames in front of them are still in their places.
    for place in range(count - 1, -1, -1):
        if which[place] != place:
            out[place] = out[which[place]]
    out[count:] = 0
    if view.flip:
        out[:] = out[:, :, ::-1]
    return out, np.arange(frames) < count
