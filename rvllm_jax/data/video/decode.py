"""Decoding a video file: its frames as players show them, their times, and what is wrong with it.

The only decoder of the project. One file is read by one thread: processes decode files side by
side (data/store/shard_writer.py).
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from rvllm_jax.data.video.container import (
    MAX_PIXELS,
    MAX_SIDE,
    DeclaredLength,
    declared_length,
    ends_as_gif,
    error_reason,
    open_file,
    pixel_aspect,
    refusal,
    reject_picture,
)
from rvllm_jax.data.video.orientation import RgbConverter
from rvllm_jax.data.video.timing import Clock, at_even_times, frame_rate
from rvllm_jax.system.pool import HUNG, JobOutcome
from rvllm_jax.types import VideoInfo

ONE_FRAME = "one frame only"  # of a video that has no more

_log = logging.getLogger(__name__)


def worker_failure(outcome: JobOutcome, path: str | os.PathLike, time_limit: float) -> str:
    """Why a video is set aside that hung or crashed the worker process that decodes it."""
    why = f"the process that decodes it ends ({outcome.reason})"
    if outcome.failure == HUNG:
        why = f"no new frame for {time_limit:g} s"
    return str(refusal(path, why))


class Decoding(Iterator[tuple[np.ndarray, float]]):
    """One pass over a file: its frames and their times, and what is learned of the file on the way.

    Iterating yields every `stride`-th frame in presentation order with its time. Of a file of
    variable rate, with a stride above 1, these are the frames nearest to evenly spaced times,
    `stride` / the average rate apart; such a time comes with each.

    Frames are `uint8[H, W, 3]` RGB as players show them: rotated and mirrored as phones store it,
    colours by the file's own matrix and range, pixels square (the width is stretched where the file
    has others); they may be views with gaps between their rows. All are of one size: the first
    frame's, or, with `short_side`, that size scaled (up or down) until the short side is
    `short_side`, to the nearest pixel. Times are in seconds and strictly increase, whatever the
    file declares. A damaged or cut file yields what still decodes, and a warning names it.

    Args:
        stride, short_side: see above.
        min_decoded: the share of the declared length that must come out of a damaged or cut file.
        on_frame: called after each frame of the file, also those between the strides; and, where
            the file's rate is only known by the times of all of its packets, after each of them
            before.

    Attributes:
        info: `VideoInfo`, known from the first frame on.
        note: at the end, what a person should know of a file that was used: that it is cut, that it
            holds one frame only, that times were mended; "" where there is nothing.

    Raises:
        VideoError: on the first `next`, when no frame at all comes out of the file, or its frames
            are too large; at the end, where less than `min_decoded` came out.
        ValueError: at once, for a stride or a short side below 1.
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
                f"decoding takes stride >= 1 and short_side >= 1: {stride}, {short_side}"
            )
        self.info: VideoInfo | None = None
        self.note = ""
        self._path, self._stride, self._short_side = Path(path), stride, short_side
        self._min_decoded, self._on_frame = min_decoded, on_frame
        self._damage = ""  # the first that was met, in words
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
            raise refusal(self._path, "takes more memory than there is") from error
        except (av.FFmpegError, ArithmeticError, LookupError, OSError, ValueError) as error:
            raise refusal(self._path, f"cannot be decoded ({error_reason(error)})") from error

    def _shown(self, container, stream) -> Iterator[tuple[np.ndarray, float]]:
        """The frames that the stride keeps, as RGB, with their times."""
        length = declared_length(container, stream)
        fps, uneven = frame_rate(self._path, stream, length, self._on_frame)
        clock, decoded = Clock(fps), self._decoded(container, stream)
        frames = self._timed(reject_picture(self._path, container, decoded), clock)
        if first := next(frames, None):
            converter = self._started(first[0], stream, fps, length)
            frames = itertools.chain([first], frames)
            if uneven and self._stride > 1:  # else all are there to choose from
                most = 2 + 2 * uneven // self._stride
                frames = at_even_times(frames, self._stride / fps, most)
            else:
                frames = itertools.islice(frames, 0, None, self._stride)
            for frame, seconds in frames:
                yield converter.rgb(frame), seconds
        if container.format.name == "gif" and not self._damage and not ends_as_gif(self._path):
            self._damage = "the end of the file is missing"
        if clock.frames == 0 and stream.width == 0:
            unknown = f"its size is not given, or above {MAX_PIXELS:,} pixels a frame"
            self._damage = "; ".join(filter(None, [self._damage, unknown]))
        self._finish(length, clock)

    def _timed(self, frames, clock: Clock) -> Iterator[tuple[av.VideoFrame, float]]:
        for frame in frames:
            yield frame, clock.tick(frame)
            self._on_frame()

    def _decoded(self, container, stream) -> Iterator[av.VideoFrame]:
        """All frames that decode; the first damage that is met is noted."""
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:  # the packets behind it may well decode
                    self._damage = self._damage or error_reason(error)
                    continue
                if not self._damage and any(frame.is_corrupt for frame in frames):
                    self._damage = "a frame is corrupt"
                yield from frames
        except av.FFmpegError as error:  # the rest of the file cannot be found
            self._damage = self._damage or error_reason(error)

    def _started(self, frame, stream, fps: float, length: DeclaredLength) -> RgbConverter:
        """Fills `info`; returns how frames like the first one are shown."""
        converter = RgbConverter(frame, pixel_aspect(stream), self._short_side)
        width, height = converter.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise refusal(
                self._path,
                f"a frame would have {width} x {height} pixels, at most {MAX_PIXELS:,} are "
                f"possible, and {MAX_SIDE:,} a side",
            )
        codec, size = stream.codec_context.name, self._path.stat().st_size
        declared = fps, length.frames, length.seconds
        self.info = VideoInfo(codec, *converter.shown, *declared, size)
        return converter

    def _finish(self, length: DeclaredLength, clock: Clock) -> None:
        """Describes what came out in `note`; raises `VideoError` where that is too little."""
        if clock.frames == 0:
            why = self._damage or "its video stream is empty"
            raise refusal(self._path, f"no frame decodes ({why})")
        notes = [length.doubt] if length.doubt else []
        end = clock.seconds + clock.duration
        if self._damage or length.is_cut(clock.frames, end, clock.duration):
            what = (
                f"it declares {length.frames} frames and {length.seconds:.2f} s, {clock.frames} "
                f"frames up to {clock.seconds:.2f} s decode"
            )
            why = f" ({self._damage})" if self._damage else ""
            if length.decoded_share(clock.frames, end) < self._min_decoded:
                share = f"a share of at least {self._min_decoded} is asked for"
                raise refusal(self._path, f"damaged or cut: {what}{why}, where {share}")
            notes.append(f"damaged or cut: {what} and are used{why}")
            _log.warning("%s is %s", self._path, notes[-1])
        if clock.frames == 1:
            notes.append(ONE_FRAME)
        if clock.mended:
            notes.append(
                f"{clock.mended} times of frames are missing or do not increase and were mended"
            )
        self.note = "; ".join(notes)
