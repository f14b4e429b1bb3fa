"""Answers every question of a plan: a video's questions behind one prefix, about all its clips."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

import jax
import numpy as np

from rvllm_jax.data.batches.dataset import ERRORS, UNREADABLE, Dataset
from rvllm_jax.data.batches.loader import question_batches
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import Template
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.evaluation.answers.questions import EvaluationError, Question
from rvllm_jax.evaluation.asked_groups import Group, Plan
from rvllm_jax.evaluation.controls import SWAPPED
from rvllm_jax.generation.decode import before_stop, generate
from rvllm_jax.hosts.sync import compiled_together
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.types import Questions

LOCK_STEP, VOTE = "lock_step", "vote"  # how several clips of a video give one answer
FUSIONS = (LOCK_STEP, VOTE)


class Said(NamedTuple):
    """What a model said to one question, or why it was not asked."""

    question: int  # its number in the dataset
    control: str
    answer: str
    ids: list[int]  # of the answer, without what ends it
    clips: list[dict[str, Any]]
    seconds: float  # of the batch, shared among its questions
    failed: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """A model on its devices: what `Opened` has, in parts that this room may see.

    put: a batch's own rows onto all devices. replicated: the sharding of what every host reads.
    share: (number, count): the block of every batch that this host reads, of so many.
    """

    model: FunctionalModel
    params: Arrays
    stats: Arrays
    tokenizer: Tokenizer
    template: Template
    context: int
    put: Callable = lambda batch: batch
    replicated: Any = None
    share: tuple[int, int] = (0, 1)


class Answering:
    """Compiled once for a dataset and a plan.

    fusion: "lock_step": the clips of a video write one answer, each token chosen from the mean of
        their probabilities; "vote": each clip writes its own and the commonest counts, of equally
        common ones that of the earliest clip.
    Raises EvaluationError where a prompt and `max_new` tokens do not fit the model's context.
    """

    def __init__(
        self,
        machine: Machine,
        dataset: Dataset,
        plan: Plan,
        *,
        max_new: int,
        fusion: str,
        seed: int,
    ):
        self.machine, self.dataset, self.plan = machine, dataset, plan
        self.fusion, self.seed = fusion, seed
        self.stops = stops = prompt.stop_ids(machine.tokenizer, machine.template)
        needed = dataset.prefix_length + dataset.question_length + max_new
        if needed > machine.context:
            raise EvaluationError(
                f"the longest prompt has {needed - max_new} tokens and --max_new={max_new} asks "
                f"for as many more, but the model's context is {machine.context}: lower --max_new "
                f"to {max(machine.context - needed + max_new, 0)} or less"
            )
        clips = plan.clips if fusion == LOCK_STEP else 1

        def answer(blind, params, stats, questions):
            module = machine.model.merge(params, stats)
            how = dict(max_new=max_new, stop_ids=stops, clips=clips, blind=blind)
            return generate(module, questions, **how), questions.ids

        shardings = {} if machine.replicated is None else {"out_shardings": machine.replicated}
        self._answer = {
            blind: compiled_together(jax.jit(functools.partial(answer, blind), **shardings))
            for blind in (False, True)
        }

    def run(self, batches: Sequence[list[Group]]) -> Iterator[list[Said]]:
        """The answers, batch by batch, in the order of the batches."""
        for control, own in groupby(batches, lambda batch: batch[0].control):
            yield from self._of_control(control, list(own))

    def tokens(self, questions: Questions, *, blind: bool = False) -> tuple[jax.Array, jax.Array]:
        """The answers to a batch, int32[groups, Q, max_new] (of a vote [rows, Q, max_new]), and
        which question each place of its rows asked, int32[rows, Q], -1 for none; of all hosts."""
        machine = self.machine
        return self._answer[blind](machine.params, machine.stats, machine.put(questions))

    def _of_control(self, control: str, batches: list[list[Group]]) -> Iterator[list[Said]]:
        plan, machine = self.plan, self.machine
        rows = []
        for batch in batches:
            own = [row for group in batch for row in group.rows(plan.clips)]
            rows += own + Group("", -1, (), ()).rows(plan.videos * plan.clips - len(own))
        loaded = question_batches(
            self.dataset,
            rows,
            batch=plan.videos * plan.clips,
            max_questions=plan.together,
            permute_seed=self.seed if control == "shuffled" else None,
            host=machine.share[0],
            hosts=machine.share[1],
        )
        last = time.perf_counter()
        for batch, questions in zip(batches, loaded, strict=True):
            tokens, ids = map(np.asarray, self.tokens(questions, blind=control == "blind"))
            now = time.perf_counter()
            seconds = (now - last) / sum(len(group.questions) for group in batch)
            last = now
            said = (self._said(g, at, tokens, ids, seconds) for at, g in enumerate(batch))
            yield list(chain.from_iterable(said))

    def _said(self, group: Group, at: int, tokens, ids, seconds: float) -> Iterator[Said]:
        """at: the group's place in the batch. tokens: int[groups or rows, Q, M]; ids: [rows, Q]."""
        first = at * self.plan.clips
        for place, question in enumerate(group.questions):
            rows = range(len(group.views))
            read = [row for row in rows if ids[first + row, place] == question]
            if not read:
                why = ERRORS[UNREADABLE]
                yield Said(question, group.control, "", [], [], seconds, why)
                continue
            if self.fusion == LOCK_STEP:
                own = self._cut(tokens[at, place])
            else:
                own = self._voted(
                    [(self._cut(tokens[first + r, place]), group.views[r].count) for r in read]
                )
            clips = self._clips(group, [group.views[row] for row in read])
            yield Said(question, group.control, self._text(own), own, clips, seconds, "")

    def _cut(self, ids: np.ndarray) -> list[int]:
        return before_stop(ids, self.stops).tolist()

    def _text(self, ids: list[int]) -> str:
        return self.machine.tokenizer.decode(ids).strip()

    def _voted(self, answers: list[tuple[list[int], int]]) -> list[int]:
        votes: dict[str, int] = {}
        ids: dict[str, list[int]] = {}
        for own, count in answers:
            text = self._text(own)
            votes[text] = votes.get(text, 0) + count
            ids.setdefault(text, own)
        return ids[max(votes, key=votes.__getitem__)]

    def _clips(self, group: Group, views) -> list[dict[str, Any]]:
        dataset = self.dataset
        video = dataset.video_name(group.clip)
        times = dataset.store.timestamps(video)
        shown = {"video": video} if group.control == SWAPPED else {}  # not the question's own
        return [
            {
                "start_s": round(float(times[view.indices[0]]), 3),
                "crop": "y={} x={} size={}".format(*view.box),
                "count": view.count,
                **shown,
            }
            for view in views
        ]


def record(question: Question, split: str, template: Template, said: Said | None) -> dict[str, Any]:
    """A line of answers.jsonl; `said` is None for a question that could not be asked."""
    return {
        "question_id": question.id,
        "video": question.video,
        "split": split,
        "question": question.turn.question,
        "truth": question.turn.answer,
        "type": question.turn.kind,
        "criteria": list(question.criteria),
        "pair": question.pair,
        "control": said.control if said else "",
        "prompt": prompt.prompt_text(template, question.turn.question),
        "answer": said.answer if said else "",
        "ids": said.ids if said else [],
        "clips": said.clips if said else [],
        "seconds": round(said.seconds, 4) if said else 0.0,
        "failed": said.failed if said else question.failed,
    }
