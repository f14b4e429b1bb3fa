"""Files of variable frame rate: which of their frames are shown at evenly spaced times."""

from collections.abc import Iterator
from typing import Any

_ROUNDED = 0.1  # share of a step by which the last frame's time may be rounded down
_ALIKE = 0.01  # share by which two rates of a constant one may differ


def is_variable(base: float, average: float) -> bool:
    """Whether a file's frames come unevenly, by what FFmpeg found in its first packets.

    base: the lowest rate at which all of their times can be told exactly. average: frames a second.
    """
    return base > 0 and 0.01 <= average <= 1000 and abs(base - average) > _ALIKE * average


class EvenTimes:
    """Picks the frame nearest to `start`, `start + step`, `start + 2 * step`, ... seconds.

    Where frames are rare one is picked for several times, where they are dense most are for none.
    most: how many times there are at the most, since a header may lie about the rate.
    """

    def __init__(self, start: float, step: float, most: int):
        self._start, self._step, self._most = start, step, most
        self._picked = 0
        self._last: tuple[Any, float] | None = None

    def pick(self, frame: Any, seconds: float) -> Iterator[tuple[Any, float]]:
        """Yields (the frame before this one, a time), for each time to which that is nearest."""
        if self._last is not None:
            last, before = self._last
            yield from self._until(last, (before + seconds) / 2)
        self._last = frame, seconds

    def rest(self) -> Iterator[tuple[Any, float]]:
        """Yields the last frame for the times that are left up to it."""
        if self._last is not None:
            frame, seconds = self._last
            yield from self._until(frame, seconds + _ROUNDED * self._step)

    def _until(self, frame: Any, end: float) -> Iterator[tuple[Any, float]]:
        while self._picked < self._most:
            time = self._start + self._picked * self._step
            if time > end:
                return
            self._picked += 1
            yield frame, time
