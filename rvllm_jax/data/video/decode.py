"""The only decoder of the project.

One file is read by one thread: `frames.write_store` gives every process its own files.
"""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from rvllm_jax.data.video.container import (
    MAX_PIXELS,
    MAX_SIDE,
    REPLACE,
    VideoError,
    declared,
    ends_as_gif,
    moving,
    open_file,
    pixel_aspect,
    reason,
)
from rvllm_jax.data.video.orientation import Picture, Turn, shown_size, target_size
from rvllm_jax.data.video.timing import EvenTimes, rate_of

ONE_FRAME = "one frame only"  # of a video that has no more

_LATE = 2.0  # frames by which times may go back without being taken for missing ones

_log = logging.getLogger(__name__)


class VideoInfo(NamedTuple):
    """What a file says of itself.

    Width and height are pixels as shown: after rotation, and with square pixels. Frames and
    seconds are what the header declares: 0 where it leaves them open or cannot be believed; `fps`
    is the average of the file's frames a second, 0 if unknown.
    """

    codec: str
    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    bytes: int


def probe(path: str | os.PathLike, *, on_frame: Callable[[], None] = lambda: None) -> VideoInfo:
    """What a file says of itself; its first frame is decoded, to see that it is a video.

    on_frame: as of `Decoding`. Raises `VideoError` where no frame comes out.
    """
    decoding = Decoding(path, on_frame=on_frame)
    try:
        next(decoding)
    finally:
        decoding.close()
    return decoding.info


def decode(
    path: str | os.PathLike,
    *,
    stride: int = 1,
    short_side: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[tuple[np.ndarray, float]]:
    """Yields every `stride`-th frame in presentation order with its time.

    Of a file of variable rate, with a stride above 1, these are the frames nearest to evenly spaced
    times, `stride` / the average rate apart; such a time comes with each.

    Frames are `uint8[H, W, 3]` RGB as players show them: rotated and mirrored as phones store it,
    colours by the file's own matrix and range, pixels square (the width is stretched where the file
    has others). All are of one size: the first frame's, or, with `short_side`, that size scaled (up
    or down) until the short side is `short_side`, to the nearest pixel. Times are in seconds and
    strictly increase, whatever the file says.

    A damaged or cut file yields what still decodes, and a warning names it. on_frame: as of
    `Decoding`.

    Raises:
      VideoError: on the first `next`, when no frame at all comes out of the file, or its frames are
        too large.
      ValueError: at once, for a stride or a short side below 1.
    """
    decoding = Decoding(path, stride=stride, short_side=short_side, on_frame=on_frame)
    return ((np.ascontiguousarray(frame), seconds) for frame, seconds in decoding)


class Decoding(Iterator[tuple[np.ndarray, float]]):
    """One pass over a file: `decode`, with what is learned of the file on the way.

    The frames that it yields may be views with gaps between their rows.

    Args:
      path, stride, short_side: as in `decode`.
      min_decoded: the share of the declared length that must come out of a damaged or cut file;
        where less does, the end of the iteration raises `VideoError`.
      on_frame: called after each frame of the file, also those between the strides; and, where the
        file's rate is only known by the times of all of its packets, after each of them before.

    Attributes:
      info: `VideoInfo`, known from the first frame on.
      note: at the end, what a person should know of a file that was used: that it is cut, that it
        holds one frame only, that times were mended; "" where there is nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        stride: int = 1,
        short_side: int | None = None,
        min_decoded: float = 0.0,
        on_frame: Callable[[], None] = lambda: None,
    ):
        if stride < 1 or (short_side is not None and short_side < 1):
            raise ValueError(
                f"decode takes stride >= 1 and short_side >= 1: {stride}, {short_side}"
            )
        self.info: VideoInfo | None = None
        self.note = ""
        self._path, self._stride, self._short_side = Path(path), stride, short_side
        self._min_decoded, self._on_frame = min_decoded, on_frame
        self._damage: list[str] = []
        self._frames = self._guarded()

    def __next__(self) -> tuple[np.ndarray, float]:
        return next(self._frames)

    def close(self) -> None:
        """Closes the file; the iteration is over."""
        self._frames.close()

    def _guarded(self) -> Iterator[tuple[np.ndarray, float]]:
        """The frames; whatever the libraries raise on a bad file is a `VideoError`."""
        try:
            container, stream = open_file(self._path)
            with container:
                yield from self._shown(container, stream)
        except MemoryError as error:
            raise VideoError(f"{self._path}: takes more memory than there is. {REPLACE}") from error
        except (av.FFmpegError, ArithmeticError, LookupError, OSError, ValueError) as error:
            raise VideoError(
                f"{self._path}: cannot be decoded ({reason(error)}). {REPLACE}"
            ) from error

    def _shown(self, container, stream) -> Iterator[tuple[np.ndarray, float]]:
        length = declared(container, stream)
        rate, uneven = rate_of(self._path, stream, length, self._on_frame)
        interval = 1 / rate if 0.01 <= rate <= 1000 else 1 / 25
        number, mended, seconds, lasts = 0, 0, 0.0, interval
        even: EvenTimes | None = None
        for frame in moving(self._path, container, _decoded(container, stream, self._damage)):
            if number == 0:
                seconds = frame.time or 0.0
                picture = self._started(frame, stream, rate, length)
                if uneven and self._stride > 1:  # else all are there to choose from
                    even = EvenTimes(seconds, self._stride / rate, 2 + 2 * uneven // self._stride)
            elif frame.time is not None and frame.time > seconds:
                seconds = frame.time
            else:  # broken files lack or repeat timestamps; order in time must survive all the same
                seconds += _mended(frame.time, seconds, interval)
                mended += 1
            if even is not None:
                for nearest, time in even.pick(frame, seconds):
                    yield picture.rgb(nearest), time
            elif number % self._stride == 0:
                yield picture.rgb(frame), seconds
            number += 1
            if frame.duration and frame.time_base:
                lasts = max(interval, float(frame.duration * frame.time_base))
            self._on_frame()
        for nearest, time in even.rest() if even else ():
            yield picture.rgb(nearest), time
        if container.format.name == "gif" and not self._damage and not ends_as_gif(self._path):
            self._damage.append("the end of the file is missing")
        if number == 0 and stream.width == 0:
            self._damage.append(f"its size is not told, or above {MAX_PIXELS:,} pixels a frame")
        self._finish(length, number, seconds, lasts, mended)

    def _started(self, frame, stream, rate: float, length) -> Picture:
        """Fills `info`; returns how frames like the first one are shown."""
        turn = Turn.of(frame)
        shown = shown_size(frame, pixel_aspect(stream), turn)
        size = target_size(*shown, self._short_side)
        if size[0] * size[1] > MAX_PIXELS or max(size) > MAX_SIDE:
            raise VideoError(
                f"{self._path}: a frame would have {size[0]} x {size[1]} pixels, at most "
                f"{MAX_PIXELS:,} are possible, and {MAX_SIDE:,} a side. {REPLACE}"
            )
        said = rate, length.frames, length.seconds, self._path.stat().st_size
        self.info = VideoInfo(stream.codec_context.name, *target_size(*shown, None), *said)
        return Picture(turn, frame.rotation, size)

    def _finish(self, length, number: int, seconds: float, lasts: float, mended: int) -> None:
        """Says what came out: `note`, or `VideoError` where that is too little."""
        if number == 0:
            why = "; ".join(self._damage) or "its video stream is empty"
            raise VideoError(f"{self._path}: no frame decodes ({why}). {REPLACE}")
        notes = [length.doubt] if length.doubt else []
        end = seconds + lasts
        if self._damage or _is_cut(length, number, end, lasts):
            what = (
                f"it declares {length.frames} frames and {length.seconds:.2f} s, {number} frames "
                f"up to {seconds:.2f} s decode"
            )
            why = f" ({self._damage[0]})" if self._damage else ""
            if _share(length, number, end) < self._min_decoded:
                raise VideoError(
                    f"{self._path}: damaged or cut: {what}{why}, where a share of at least "
                    f"{self._min_decoded} is asked for. {REPLACE}"
                )
            notes.append(f"damaged or cut: {what} and are used{why}")
            _log.warning("%s is %s", self._path, notes[-1])
        if number == 1:
            notes.append(ONE_FRAME)
        if mended:
            notes.append(f"{mended} times of frames are missing or do not increase and were mended")
        self.note = "; ".join(notes)


def _mended(time: float | None, last: float, interval: float) -> float:
    """By how many seconds a frame is behind the one before, whose time is not before its own.

    Where it is late by few frames, as those of MPEG-PS that have no time in the file, by so little
    that the times of the frames to come are not passed too.
    """
    late = time is not None and last - time <= _LATE * interval
    return interval / 8 if late else interval


def _is_cut(length, number: int, end: float, lasts: float) -> bool:
    """Whether less came out than is declared: `number` frames, to `end`, the last for `lasts`."""
    if length.frames:  # an edit list may hide frames: then the seconds are all there
        missing = length.seconds == 0 or end + 2 * lasts < length.seconds
        return length.frames > number and missing
    if length.of_picture:  # mkv and webm
        return length.seconds > 1.02 * end + 2 * lasts
    return length.seconds > 1.5 * end + 1  # sound may outlast the picture, hence the slack


def _share(length, number: int, end: float) -> float:
    """How much of the declared length came out; 1 where nothing reliable is declared."""
    shares = [number / length.frames] if length.frames else []
    shares += [end / length.seconds] if length.seconds and length.of_picture else []
    return max(shares, default=1.0)


def _decoded(container, stream, damage: list[str]) -> Iterator[av.VideoFrame]:
    """All frames that decode; what does not is described in `damage`."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the rest of the file cannot be found
            damage[:] = damage or [reason(error)]
            packet = None
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.FFmpegError as error:  # the packets behind it may well decode
            damage[:] = damage or [reason(error)]
            continue
        if not damage and any(frame.is_corrupt for frame in decoded):
            damage.append("a frame is corrupt")
        yield from decoded
