"""The H.264 writer of the rendered clips."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from rvllm_jax.data.video.container import VideoError
from rvllm_jax.system.atomic import replacing


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
    failures = (av.FFmpegError, OSError)
    with replacing(path, error=VideoError, failures=failures) as part:
        _encode(part, frames, Fraction(fps).limit_denominator(1001), crf)


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
