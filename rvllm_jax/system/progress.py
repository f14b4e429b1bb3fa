"""Progress of work that counts videos or questions."""

from collections.abc import Callable

from tqdm import tqdm


def bar(title: str, unit: str = "videos", *, piped: bool = True) -> Callable[[int, int], None]:
    """A bar with rate and time left, called with (videos done, all videos); none before that.

    unit: what it counts. piped: whether it also shows where no terminal is.
    """
    shown = None  # none where nothing is left to do

    def update(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            disable = False if piped else None
            shown = tqdm(total=total, desc=title, unit=f" {unit}", leave=False, disable=disable)
        shown.update(done - shown.n)
        if done >= total:
            shown.close()

    return update


def questions(title: str, total: int, *, shown: bool) -> tqdm:
    """A bar that counts questions; where it is not shown, it only counts."""
    return tqdm(total=total, desc=title, unit=" questions", leave=False, disable=not shown)


class VideosDone:
    """Reports how many videos are done; the number never falls."""

    def __init__(self, total: int, finished: int, report: Callable[[int, int], None] | None):
        self._total, self._finished, self._reported = total, finished, finished
        self._report = report or (lambda finished, total: None)

    def finished(self, videos: int) -> None:
        """So many videos more are in shards that are finished."""
        self._finished += videos
        self.in_work(0)

    def in_work(self, videos: int) -> None:
        """So many videos are done of shards in work."""
        if self._finished + videos > self._reported:
            self._reported = self._finished + videos
            self._report(self._reported, self._total)
