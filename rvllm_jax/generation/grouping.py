"""What is answered together: which questions, about which views of a video, in which batch.

All batches have the same shape, and are a pure function of the dataset and the options: an
evaluation that was stopped goes on with the same ones, so that it ends as if it had not been.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rvllm_jax.data.batches.clips import VIEWS, View
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import QuestionSet

MOST_TOGETHER = 16  # questions behind one copy of a video's prefix
_VIDEO = 8  # what reading a video's prefix costs, in questions; only decides how many are together


class Group(NamedTuple):
    """Questions that share a video's prefix."""

    video: int  # number of the video that is shown
    questions: tuple[int, ...]  # numbers in the dataset
    views: tuple[View | None, ...]  # each that differs once; None: the centred one


class Grouping:
    """How the questions of a dataset are put into batches.

    videos: groups a batch. together: questions a group at most. centred: each video is shown by the
    view in its middle, not by the dataset's test views. `views` is how many rows a group has.
    """

    def __init__(self, dataset: Dataset, *, videos: int, together: int, centred: bool = False):
        self.dataset, self.videos, self.together = dataset, videos, together
        self._views: dict[int, tuple[View | None, ...]] = {
            video: (None,) if centred else tuple(dataset.views(video))
            for video in dict.fromkeys(dataset.question_videos)
        }
        self.views = max(map(len, self._views.values()))

    def batches(self, shown: Mapping[int, int] | None = None) -> list[list[Group]]:
        """The batches of all questions, or of {question: the video that it is asked about}."""
        if shown is None:
            shown = dict(enumerate(self.dataset.question_videos))
        about: dict[int, list[int]] = {}
        for question, video in shown.items():
            about.setdefault(video, []).append(question)
        groups = [
            Group(video, tuple(questions[at : at + self.together]), self._views[video])
            for video, questions in sorted(about.items())
            for at in range(0, len(questions), self.together)
        ]
        return [groups[at : at + self.videos] for at in range(0, len(groups), self.videos)]

    def rows(self, batches: Iterable[Sequence[Group]]) -> list[QuestionSet]:
        """The rows of batches, `videos` times `views` each, empty ones where there is no view."""
        rows = []
        for batch in batches:
            for group in batch:
                rows += [QuestionSet(group.video, group.questions, view) for view in group.views]
                rows += [QuestionSet(-1, ())] * (self.views - len(group.views))
            rows += [QuestionSet(-1, ())] * (self.views * (self.videos - len(batch)))
        return rows


def videos_a_batch(clips: int, test_clips: str, devices: int = 1) -> int:
    """How many videos, in all their test views, make up about `clips` clips: a multiple of the
    devices that a batch is split over, at least one each.

    >>> videos_a_batch(16, "1x1"), videos_a_batch(64, "25x1"), videos_a_batch(16, "5x5", 8)
    (16, 2, 8)
    """
    starts, crops = VIEWS[test_clips]
    return -(-max(clips // (starts * crops), 1) // devices) * devices


def questions_together(counts: Iterable[int], most: int = MOST_TOGETHER) -> int:
    """How many questions of a video are answered behind one prefix, where videos have so many.

    Every group takes as much time as the fullest one: one question a video gives 1, and where most
    have two and one has 16, a few groups more are cheaper than 14 places that are empty.

    >>> [questions_together(counts) for counts in ([1, 1], [10, 10], [2] * 50 + [16])]
    [1, 10, 2]
    """
    counts = np.asarray(list(counts))
    sizes = range(1, min(most, int(counts.max())) + 1)
    return min(sizes, key=lambda size: (int((-(-counts // size)).sum()) * (_VIDEO + size), size))
