"""What is answered together: which questions, about which clips, in which batch.

The plan is a pure function of the questions and the options. An evaluation that was stopped goes on
with the same batches, so that it ends as if it had not been.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rvllm_jax.data.batches.clips import View
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import QuestionSet
from rvllm_jax.evaluation.answers.questions import Key, Question
from rvllm_jax.evaluation.controls import SWAPPED, partners

PLAIN = ""  # the control of answers without one
MOST_TOGETHER = 16  # questions behind one copy of a video's prefix
_VIDEO = 8  # what reading a video's prefix costs, in questions; only decides how many are together


class Group(NamedTuple):
    """Questions that share a video's prefix."""

    control: str
    clip: int  # number of the clip that is shown
    questions: tuple[int, ...]  # numbers in the dataset
    views: tuple[View | None, ...]  # the test clips, each that differs once

    def rows(self, clips: int) -> list[QuestionSet]:
        """As many rows as `clips`, empty ones behind."""
        own = [QuestionSet(self.clip, self.questions, view) for view in self.views]
        return own + [QuestionSet(-1, ())] * (clips - len(own))


class Plan(NamedTuple):
    """Batches of groups, each batch of one control; all have the same shape."""

    batches: list[list[Group]]
    videos: int  # groups a batch
    clips: int  # rows a group
    together: int  # questions a group at most


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


def plan(
    dataset: Dataset, controls: Mapping[str, Mapping[int, int]], *, videos: int, together: int
) -> Plan:
    """All questions plain, then those of each control: {question: the clip that it is asked about}.

    The numbers are the dataset's.
    """
    views: dict[int, tuple[View | None, ...]] = {}
    plain = dict(enumerate(dataset.question_videos))
    batches = []
    for control, shown in {PLAIN: plain, **controls}.items():
        about: dict[int, list[int]] = {}
        for question, clip in shown.items():
            about.setdefault(clip, []).append(question)
        groups = []
        for clip, own in sorted(about.items()):
            if clip not in views:
                views[clip] = tuple(dataset.views(clip))
            parts = (own[at : at + together] for at in range(0, len(own), together))
            groups += [Group(control, clip, tuple(part), views[clip]) for part in parts]
        batches += [groups[at : at + videos] for at in range(0, len(groups), videos)]
    clips = max(map(len, views.values()))
    return Plan(batches, videos, clips, together)


def chosen_controls(
    dataset: Dataset, questions: Sequence[Question], count: int, seed: int
) -> dict[str, dict[int, int]]:
    """About `count` questions for the controls, drawn by `seed`, with the clip each is asked about.

    questions: those of the dataset, in its order. The two of a consistency item are drawn together.
    Without another video to show there is no "swapped".
    """
    units: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        units.setdefault(question.pair or f"question {number}", []).append(number)
    own = list(units.values())
    order = np.random.default_rng(seed).permutation(len(own))
    drawn: list[int] = []
    for unit in order:
        if len(drawn) >= count:
            break
        drawn += own[unit]
    if not drawn:
        return {}
    drawn.sort()
    clips = dataset.question_videos
    plain = {number: clips[number] for number in drawn}
    controls = {"blind": plain, "shuffled": plain}
    others = partners([question.turn for question in questions], clips)
    if others:
        controls[SWAPPED] = {number: clips[others[number]] for number in drawn}
    return controls


def pending(plan: Plan, questions: Sequence[Question], done: Collection[Key]) -> list[list[Group]]:
    """The batches of which some question is not answered yet."""
    return [
        batch
        for batch in plan.batches
        if any((questions[n].id, g.control) not in done for g in batch for n in g.questions)
    ]
