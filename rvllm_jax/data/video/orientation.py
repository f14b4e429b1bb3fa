"""From a decoded frame to the RGB image that a player shows: oriented, with square pixels."""

import av
import numpy as np
from av.video.reformatter import VideoReformatter


class RgbConverter:
    """Converts frames to RGB of one size, as they are shown.

    shown: (width, height) of the first frame with square pixels, after rotation. size: the same
    scaled until the short side is `short_side`. Both in pixels.
    """

    def __init__(self, first: av.VideoFrame, aspect: float, short_side: int | None):
        """aspect: width of a stored pixel by its height."""
        self._rotation, self._orientation = first.rotation, _orientation(first)
        self._reformatter = VideoReformatter()
        sides = first.width * aspect, first.height
        transposed, *_ = self._orientation
        sides = sides[::-1] if transposed else sides
        scale, short = (1, 1) if short_side is None else (short_side, min(sides))
        self.shown = tuple(max(1, round(side)) for side in sides)
        self.size = tuple(max(1, round(side * scale / short)) for side in sides)

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """`uint8[height, width, 3]` of `size`, a view of memory that nobody else uses."""
        if frame.rotation != self._rotation:
            self._rotation, self._orientation = frame.rotation, _orientation(frame)
        transposed, flip_vertical, flip_horizontal = self._orientation
        size = self.size[::-1] if transposed else self.size
        frame = self._reformatter.reformat(frame, *size, format="rgb24", threads=1)
        (plane,) = frame.planes
        shape, strides = (frame.height, frame.width, 3), (plane.line_size, 3, 1)
        image = np.ndarray(shape, np.uint8, buffer=plane, strides=strides)
        if transposed:
            image = image.swapaxes(0, 1)
        return image[:: -1 if flip_vertical else 1, :: -1 if flip_horizontal else 1]


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How stored pixels are oriented to be shown, by the frame's display matrix, to the nearest
    quarter turn: whether axes are swapped, then flipped vertically, and horizontally.

    The matrix maps the point (x, y) to (a x + c y, b x + d y).
    """
    data = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)
