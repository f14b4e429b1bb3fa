"""The only decoder of the project, and the H.264 writer of the rendered clips.

One file is read by one thread: `frames.write_store` gives every process its own files, and for
small frames the thread pools of FFmpeg and of swscale cost ten times what they bring.
"""

import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif",
    ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv",
)  # fmt: skip

_log = logging.getLogger(__name__)


class VideoError(Exception):
    """A file that cannot be read or written as a video: its path, what failed, what to do."""


def decode(
    path: str | os.PathLike, *, stride: int = 1, short_side: int | None = None
) -> Iterator[tuple[np.ndarray, float]]:
    """Yields every `stride`-th frame in presentation order with its time.

    Frames are `uint8[H, W, 3]` RGB, all of one size: the first frame's, or, with `short_side`, that
    size scaled (up or down) until the short side is `short_side`, to the nearest pixel. Rotation
    stored by phones is applied; a non-square sample aspect ratio is not. Times are in seconds and
    strictly increase, whatever the file says.

    A damaged or cut file yields what still decodes, and a warning names it.

    Raises:
      VideoError: on the first `next`, when no frame at all comes out of the file.
      ValueError: at once, for a stride or a short side below 1.
    """
    if stride < 1 or (short_side is not None and short_side < 1):
        raise ValueError(f"decode takes stride >= 1 and short_side >= 1: {stride}, {short_side}")
    return _decode(Path(path), stride, short_side)


def _decode(path: Path, stride: int, short_side: int | None) -> Iterator[tuple[np.ndarray, float]]:
    reformatter, number, seconds = VideoReformatter(), 0, 0.0
    damage: list[str] = []
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        interval = float(1 / (stream.average_rate or 25))
        for frame in _frames(container, stream, damage):
            if number == 0:
                size = _target_size(frame.width, frame.height, short_side)
                seconds = frame.time or 0.0
            elif frame.time is not None and frame.time > seconds:
                seconds = frame.time
            else:  # broken files lack or repeat timestamps; order in time must survive all the same
                seconds += interval
            if number % stride == 0:
                rgb = reformatter.reformat(frame, *size, format="rgb24", threads=1).to_ndarray()
                yield np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90))), seconds
            number += 1
        declared = stream.frames, (container.duration or 0) / av.time_base
    if number == 0:
        reason = damage[0] if damage else "its video stream is empty"
        raise VideoError(f"{path}: no frame decodes ({reason}). {_REPLACE}")
    # Sound may outlast the picture, hence the slack; a cut mkv or avi shows in its duration only.
    if damage or declared[0] > number or declared[1] > 1.5 * (seconds + interval) + 1:
        _log.warning(
            "%s is damaged or cut: it declares %d frames and %.2f s, %d frames up to %.2f s decode"
            " and are used%s",
            path, *declared, number, seconds, f" ({damage[0]})" if damage else "",
        )  # fmt: skip


_REPLACE = "Replace or re-encode the file, or remove it from the conversations."


def _open(path: Path) -> av.container.InputContainer:
    try:
        if not path.is_file():
            raise VideoError(f"{path}: no such file. Check the videos folder and the file's name.")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes). {_REPLACE}")
        # An absolute path cannot be taken for an address ("a:b.mp4").
        container = av.open(os.path.abspath(path), metadata_errors="replace")
    except PermissionError as error:
        raise VideoError(f"{path}: no permission to read it. Change the file's mode.") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)}). {_REPLACE}") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: the file has no video stream. {_REPLACE}")
    return container


def _frames(container, stream, damage: list[str]) -> Iterator[av.VideoFrame]:
    """All frames that decode; what does not is described in `damage`."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the rest of the file cannot be found
            damage.append(_reason(error))
            packet = None
        if packet is None:
            return
        try:
            decoded = packet.decode()
        except av.FFmpegError as error:  # the packets behind it may well decode
            damage.append(_reason(error))
            continue
        damage += ["a frame is corrupt"] * any(frame.is_corrupt for frame in decoded)
        yield from decoded


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _target_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return width, height
    short = min(width, height)
    return tuple(max(1, round(side * short_side / short)) for side in (width, height))


def write(path: str | os.PathLike, frames: np.ndarray, *, fps: float, crf: int = 18) -> None:
    """Writes `uint8[T, H, W, 3]` as H.264 (yuv420p) in an mp4 file, whole or not at all.

    The same frames give the same bytes. `crf` is x264's quality (0 lossless, 51 worst). Height and
    width must be even, since colour is stored at half the resolution.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"{path}: frames must be uint8[T, H, W, 3], not {frames.dtype}"
                         f"{list(frames.shape)}")  # fmt: skip
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 takes even heights and widths, not {height}x{width}")
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _encode(part, frames, Fraction(fps).limit_denominator(1001), crf)
        os.replace(part, path)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: writing failed ({_reason(error)}). Check the folder and its free space."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _encode(path: Path, frames: np.ndarray, rate: Fraction, crf: int) -> None:
    options = {"crf": str(crf), "preset": "ultrafast", "threads": "1"}
    reformatter = VideoReformatter()
    with av.open(os.path.abspath(path), "w", format="mp4", options={"fflags": "bitexact"}) as out:
        stream = out.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        tick = 1 / rate
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = reformatter.reformat(frame, format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
