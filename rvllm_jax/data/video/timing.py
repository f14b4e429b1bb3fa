"""When frames are shown: a file's rate, times that increase, and frames at evenly spaced times."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from rvllm_jax.data.video.container import DeclaredLength, open_file

_ROUNDED = 0.1  # share of a step by which the last frame's time may be rounded down
_ALIKE = 0.01  # share by which two rates of a constant one may differ
_REORDERED = 32  # packets by which one may come late in the file; H.264 and HEVC need 16
_OFF = 1.5  # frames by which times of a constant rate may be off: one is missing, say
_LATE = 2.0  # frames by which times may go back without being taken for missing ones
_JUMP = 10.0  # seconds; FFmpeg's own limit, above which times of a broadcast have begun anew


class Rate(NamedTuple):
    """Average frames a second, 0 if unknown; and how many frames there are if they come unevenly.

    `uneven` is about their number, 0 where they come evenly: then every stride-th is taken.
    """

    fps: float
    uneven: int


def frame_rate(
    path: Path, stream: Any, length: DeclaredLength, on_packet: Callable[[], None]
) -> Rate:
    """The rate of an open file, of which nothing is read by this.

    mp4, mov and AVI declare how many frames there are in how many seconds. Of others, such as mkv,
    webm, ts and flv, FFmpeg knows the average of the first packets only: the times of all packets
    are read, once more than the file, without decoding. on_packet: called after each of them.
    """
    fps = float(stream.average_rate or 0)
    if length.frames:
        return Rate(fps, length.frames if is_variable(float(stream.base_rate or 0), fps) else 0)
    again, its_stream = open_file(path)
    with again:
        jumps = bool(again.format.flags & av.format.Flags.ts_discont.value)
        times = _packet_times(again, its_stream, on_packet)
        return measure_rate(times, fps, longest=_JUMP if jumps else math.inf) or Rate(fps, 0)


def measure_rate(
    packets: Iterable[tuple[float | None, float]], fps: float, *, longest: float = math.inf
) -> Rate | None:
    """The rate by the times of all packets; None where they are missing, jump or give no rate.

    packets: (time, duration) in seconds, of which the time is None and the duration 0 if unknown,
    in an order that differs from that of presentation by few packets. fps: the rate that is kept if
    the times fit it. longest: seconds between two frames above which they are taken for a jump.
    """
    interval = 1 / fps if 0.01 <= fps <= 1000 else 0.0
    times, durations = np.fromiter(packets, np.dtype((float, 2))).reshape(-1, 2).T
    order = np.lexsort((durations, times))
    if np.isnan(times).any() or (order - np.arange(len(order)) > _REORDERED).any():
        return None
    times, first_of = np.unique(times[order], return_index=True)  # a second field has no time
    frames = len(times)
    if frames < 2 or np.diff(times).max() > longest:
        return None
    off = times - times[0] - np.arange(frames) * interval
    if np.ptp(off) <= _OFF * interval:
        return Rate(fps, 0)
    seconds = times[-1] - times[0]
    rate = frames / (seconds + (durations[order][first_of[-1]] or seconds / (frames - 1)))
    return Rate(float(rate), frames) if 0.01 <= rate <= 1000 else None


def _packet_times(
    container: Any, stream: Any, on_packet: Callable[[], None]
) -> Iterator[tuple[float | None, float]]:
    """(time, duration) of each packet in the file's order, up to what cannot be read."""
    tick = float(stream.time_base or 0)
    with contextlib.suppress(av.FFmpegError):  # decoding reports it
        for packet in container.demux(stream):
            if packet.size:
                time = packet.dts if packet.pts is None else packet.pts
                yield None if time is None else time * tick, (packet.duration or 0) * tick
                on_packet()


def is_variable(base: float, average: float) -> bool:
    """Whether a file's frames come unevenly, by what FFmpeg found in its first packets.

    base: the lowest rate at which all of their times are exact. average: frames a second.
    """
    return base > 0 and 0.01 <= average <= 1000 and abs(base - average) > _ALIKE * average


class Clock:
    """When each frame of a file is shown, in seconds: times that strictly increase, one by one.

    Broken files lack or repeat times; the order must survive all the same.

    Attributes:
        frames: how many there were. mended: for how many of them the file gives no usable time.
        seconds: of the last one. duration: seconds for which that one is shown.
    """

    def __init__(self, fps: float):
        self._interval = 1 / fps if 0.01 <= fps <= 1000 else 1 / 25
        self.frames, self.mended = 0, 0
        self.seconds, self.duration = 0.0, self._interval

    def tick(self, frame: av.VideoFrame) -> float:
        """When the next frame is shown."""
        if self.frames == 0:
            self.seconds = frame.time or 0.0
        elif frame.time is not None and frame.time > self.seconds:
            self.seconds = frame.time
        else:
            self.seconds += self._mend(frame.time)
            self.mended += 1
        self.frames += 1
        if frame.duration and frame.time_base:
            self.duration = max(self._interval, float(frame.duration * frame.time_base))
        return self.seconds

    def _mend(self, time: float | None) -> float:
        """By how many seconds a frame follows the one before, whose time is not before its own.

        Where it is late by few frames, as those of MPEG-PS that have no time in the file, by so
        little that the times of the frames to come are not passed too.
        """
        late = time is not None and self.seconds - time <= _LATE * self._interval
        return self._interval / 8 if late else self._interval


def at_even_times(
    frames: Iterable[tuple[Any, float]], step: float, most: int
) -> Iterator[tuple[Any, float]]:
    """Yields the frame nearest to the first one's time, `step` seconds later, ..., and that time.

    Where frames are rare one is picked for several times, where they are dense most are for none.
    frames: each with its time. most: how many times there are at the most, since a header may lie
    about the rate.
    """
    start, picked = None, 0
    with_next = itertools.pairwise(itertools.chain(frames, [(None, math.inf)]))
    for (frame, seconds), (_, following) in with_next:
        start = seconds if start is None else start
        is_last = following == math.inf
        end = seconds + _ROUNDED * step if is_last else (seconds + following) / 2
        while picked < most and (time := start + picked * step) <= end:
            yield frame, time
            picked += 1
