"""Progress of work that counts videos or questions."""

from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

from rvllm_jax.data.store.shards import Task


def bar(title: str) -> Callable[[int, int], None]:
    """A bar with rate and time left, called with (videos done, all videos); none before that."""
    shown = None  # none where nothing is left to do

    def update(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(total=total, desc=title, unit=" videos", leave=False)
        shown.update(done - shown.n)
        if done >= total:
            shown.close()

    return update


def questions(title: str, total: int, *, shown: bool) -> tqdm:
    """A bar that counts questions; where it is not shown, it only counts."""
    return tqdm(total=total, desc=title, unit=" questions", leave=False, disable=not shown)


class VideosDone:
    """Tells the caller how many videos are done; the number never falls."""

    def __init__(
        self, tasks: Sequence[Task], done: Iterable[int], report: Callable[[int, int], None] | None
    ):
        self._total = sum(len(task.videos) for task in tasks)
        self._finished = sum(len(task.videos) for task in tasks if task.shard in done)
        self._told = self._finished
        self._report = report or (lambda finished, total: None)

    def finished(self, videos: int) -> None:
        """So many videos more are in shards that are finished."""
        self._finished += videos
        self.in_work(0)

    def in_work(self, videos: int) -> None:
        """So many videos are done of shards in work."""
        if self._finished + videos > self._told:
            self._told = self._finished + videos
            self._report(self._told, self._total)
