"""From a decoded frame to the RGB image that a player shows: oriented, with square pixels."""

from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter


class Orientation(NamedTuple):
    """How stored pixels are oriented to be shown: axes swapped, then flipped."""

    transposed: bool
    flip_vertical: bool
    flip_horizontal: bool

    @classmethod
    def from_frame(cls, frame: av.VideoFrame) -> "Orientation":
        """By the frame's display matrix, to the nearest quarter turn.

        The matrix maps the point (x, y) to (a x + c y, b x + d y).
        """
        data = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
        if data is None:
            return cls(False, False, False)
        a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
        if abs(b) > abs(a):
            return cls(True, b < 0, c < 0)
        return cls(False, d < 0, a < 0)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """`uint8[h, w, 3]` as it is shown, a view."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


class RgbConverter:
    """Converts frames to RGB of one size (width, height), as they are shown.

    orientation: of frames that declare the same `rotation` (degrees) as the first one.
    """

    def __init__(self, orientation: Orientation, rotation: int, size: tuple[int, int]):
        self._orientation, self._rotation, self._size = orientation, rotation, size
        self._reformatter = VideoReformatter()

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """`uint8[height, width, 3]`, a view of memory that nobody else uses."""
        if frame.rotation != self._rotation:
            self._orientation, self._rotation = Orientation.from_frame(frame), frame.rotation
        size = self._size[::-1] if self._orientation.transposed else self._size
        frame = self._reformatter.reformat(frame, *size, format="rgb24", threads=1)
        (plane,) = frame.planes
        shape, strides = (frame.height, frame.width, 3), (plane.line_size, 3, 1)
        return self._orientation.apply(np.ndarray(shape, np.uint8, buffer=plane, strides=strides))


def shown_size(
    frame: av.VideoFrame, aspect: float, orientation: Orientation
) -> tuple[float, float]:
    """(width, height) with square pixels, after rotation; not yet whole numbers."""
    width = frame.width * aspect
    return (frame.height, width) if orientation.transposed else (width, frame.height)


def target_size(width: float, height: float, short_side: int | None) -> tuple[int, int]:
    """The size whose short side is `short_side`, or the nearest one to the given, in pixels."""
    scale, short = (1, 1) if short_side is None else (short_side, min(width, height))
    return tuple(max(1, round(side * scale / short)) for side in (width, height))
