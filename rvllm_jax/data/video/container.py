"""Opening a file as a video: what is refused before it is decoded, and what its header declares."""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
from av.stream import Disposition

from rvllm_jax.system.errors import RvllmError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif",
    ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".vob", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".ogv",
)  # fmt: skip

MAX_PIXELS = 80_000_000  # a frame; 8K has 33 million, a square of 8192 67
MAX_SIDE = 65_500  # pixels of a frame as stored: the most that a JPEG encoder takes
_REPLACE = "Replace or re-encode the file, or remove it from the examples."

# A header that declares more is not believed: a month at 30 frames a second, eleven days; nor one
# that declares more frames than the file has bytes.
_MAX_FRAMES, _MAX_SECONDS = 10**8, 10**6
# Pictures in the container of mp4, by its brand, and formats of pictures and of moving ones both.
_PICTURE_BRANDS = ("avif", "avci", "heic", "heix", "heim", "heis", "mif1", "mif2", "miaf")
_PICTURES = ("image2", "ico", "fits", "iff")
_MAY_BE_PICTURES = ("gif", "apng", "webp", "jpegxl_anim", "avis", "avcs", "hevc", "hevx", "msf1")
# Text that names other files or addresses. It is known by its first bytes, since opening it as a
# video would open these already; by FFmpeg's word where it begins otherwise.
_LISTS = {
    "hls": rb"#EXTM3U", "concat": rb"ffconcat", "sdp": rb"v=0\r?\n",
    "dash": rb"<(.*<)?MPD", "imf": rb"<(.*<)?AssetMap",
}  # fmt: skip
_HEAD = 1024  # bytes that are looked at


class VideoError(RvllmError):
    """A file that cannot be read or written as a video: its path, what failed, what to do."""


def refusal(path: Path, why: str) -> VideoError:
    """The error of a file that is no usable video."""
    return VideoError(f"{path}: {why}. {_REPLACE}")


class DeclaredLength(NamedTuple):
    """The length that a header declares: 0 for what it leaves open or what cannot be believed.

    `of_picture` is False where `seconds` may be those of the sound. `doubt` names what was not
    believed, if anything.
    """

    frames: int
    seconds: float
    of_picture: bool
    doubt: str

    def is_cut(self, frames: int, end: float, duration: float) -> bool:
        """Whether less decoded than this: `frames` up to `end` seconds, the last for `duration`."""
        if self.frames:  # an edit list may hide frames: then the seconds are all there
            missing = self.seconds == 0 or end + 2 * duration < self.seconds
            return self.frames > frames and missing
        if self.of_picture:  # mkv and webm
            return self.seconds > 1.02 * end + 2 * duration
        return self.seconds > 1.5 * end + 1  # sound may outlast the picture, hence the slack

    def decoded_share(self, frames: int, end: float) -> float:
        """How much of it `frames` up to `end` seconds are; 1 where nothing reliable is declared."""
        shares = [frames / self.frames] if self.frames else []
        shares += [end / self.seconds] if self.seconds and self.of_picture else []
        return max(shares, default=1.0)


def open_file(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The open file and its video stream; raises `VideoError` where it is no video.

    No frame of more than `MAX_PIXELS` is decoded, so that a header cannot ask for the memory.
    """
    try:
        _check_file(path)
        # An absolute path cannot be taken for an address ("a:b.mp4").
        limit = {"max_pixels": str(MAX_PIXELS)}
        container = av.open(os.path.abspath(path), options=limit, metadata_errors="replace")
    except PermissionError as error:
        raise VideoError(f"{path}: no permission to read it. Change the file's mode.") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise refusal(path, f"not a readable video ({error_reason(error)})") from error
    try:
        stream = _video_stream(path, container)
        stream.codec_context.options = limit
        # One file is read by one thread: for small frames threads cost ten times what they bring.
        stream.thread_type = "NONE"
    except BaseException:
        container.close()
        raise
    return container, stream


def _check_file(path: Path) -> None:
    if not path.exists():
        raise VideoError(f"{path}: no such file. Check the videos folder and the file's name.")
    if not path.is_file():  # a folder, or a pipe, which might never end
        raise refusal(path, "not a file, but a folder, pipe or device")
    if path.stat().st_size == 0:
        raise refusal(path, "the file is empty (0 bytes)")
    with path.open("rb") as file:
        head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    for kind, mark in _LISTS.items():
        if re.match(mark, head, re.DOTALL):
            raise refusal(path, f"a list of other files ({kind}), not a video")


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    kind, brand = container.format.name, _brand(container)
    if kind.endswith("_pipe") or kind in _PICTURES or brand in _PICTURE_BRANDS:
        raise refusal(path, f"a picture ({brand or kind.removesuffix('_pipe')}), not a video")
    if kind in _LISTS:
        raise refusal(path, f"a list of other files ({kind}), not a video")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise refusal(path, "the file has no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise refusal(path, "no decoder for its codec")
    if stream.width * stream.height > MAX_PIXELS:
        size = f"{stream.width} x {stream.height} pixels"
        raise refusal(path, f"declares {size}, at most {MAX_PIXELS:,} a frame are decoded")
    return stream


def _brand(container: av.container.InputContainer) -> str:
    return container.metadata.get("major_brand", "").strip()


def reject_picture(
    path: Path, container: av.container.InputContainer, frames: Iterator[av.VideoFrame]
) -> Iterator[av.VideoFrame]:
    """`frames` of the file; of a GIF, or another format that pictures have too, two at least.

    Raises `VideoError` where such a file has one: it is a picture. Of other formats, one frame is a
    short video.
    """
    kind = {container.format.name, _brand(container)}.intersection(_MAY_BE_PICTURES)
    if kind:
        first = list(itertools.islice(frames, 2))
        if len(first) == 1:
            raise refusal(path, f"a picture ({kind.pop()} of one frame), not a video")
        yield from first
    yield from frames


def declared_length(
    container: av.container.InputContainer, stream: av.VideoStream
) -> DeclaredLength:
    """The length that the header declares."""
    frames, seconds, of_picture = stream.frames, 0.0, True
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    elif "DURATION" in stream.metadata:
        seconds = _clock(stream.metadata["DURATION"])
    if not seconds and container.duration is not None:
        seconds = container.duration / av.time_base
        of_picture = len(container.streams) == 1
    doubts = []
    if pixel_aspect(stream) != float(stream.sample_aspect_ratio or 1):
        doubts.append(f"pixels of an aspect of {stream.sample_aspect_ratio}")
    size = container.size if container.size > 0 else _MAX_FRAMES  # a frame takes a byte at least
    if not 0 <= frames <= min(_MAX_FRAMES, size):
        doubts.append(f"{frames} frames")
        frames = 0
    rate = float(stream.average_rate or 0)
    if container.format.name == "avi" and rate > 0:  # of a cut one FFmpeg scales the time by bytes
        seconds = max(seconds, frames / rate)
    if not (0 <= seconds <= _MAX_SECONDS and seconds * rate <= size):
        doubts.append(f"{seconds:.0f} s")
        seconds = 0.0
    doubt = f"its header declares {' and '.join(doubts)}, which is not believed" if doubts else ""
    return DeclaredLength(frames, seconds, of_picture, doubt)


def ends_as_gif(path: Path) -> bool:
    """Whether the mark that ends a GIF is there: its header declares no length."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))  # some writers pad
        return file.read().rstrip(b"\0\r\n ").endswith(b";")


def pixel_aspect(stream: av.VideoStream) -> float:
    """Width of the file's pixels by their height; 1 where that is unknown or beyond belief."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / 8 <= aspect <= 8 else 1.0


def _clock(text: str) -> float:
    """Seconds of Matroska's "HH:MM:SS.fraction"; 0 where it is something else."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def error_reason(error: Exception) -> str:
    """What an error of FFmpeg or of the system is, in words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
