"""Asks a model every question of a split, with its own or a changed input, and scores them."""

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from absl import logging

from rvllm_jax.data.annotations.example import Turn
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import eval_batches
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.evaluation.score.accuracy import accuracy_by_type
from rvllm_jax.generation.decode import before_stop, generate
from rvllm_jax.hosts.sync import compiled_together
from rvllm_jax.models.functional import Arrays, FunctionalModel


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question of a split and what the model said."""

    example: int
    turn: Turn
    answer: str
    unreadable: bool = False  # nothing was shown: none of its clips could be read


class Asker:
    """Greedy answers of one model, compiled once for each shape of a dataset.

    `put` lays questions on the devices, `fetch` brings arrays back from there. `share`, (number,
    count): the blocks of a batch that this host reads, of so many; `put` and `fetch` are then those
    of all hosts, and each gets all answers.
    """

    def __init__(
        self,
        model: FunctionalModel,
        params: Arrays,
        stats: Arrays,
        tokenizer: Tokenizer,
        *,
        stop_ids: tuple[int, ...] = (),
        batch: int,
        max_new: int,
        max_questions: int,
        put: Callable = lambda questions: questions,
        fetch: Callable = jax.device_get,
        share: tuple[int, int] = (0, 1),
    ):
        self.params, self.stats, self.tokenizer = params, stats, tokenizer
        self.batch, self.max_questions = batch, max_questions
        self.put, self.fetch, self.share = put, fetch, share
        self.max_new = max_new
        self._stops = stops = stop_ids or tokenizer.stop_ids  # of a template: `chat.stop_ids`

        def answer(blind, params, stats, questions):
            module = model.merge(params, stats)
            return generate(module, questions, max_new=max_new, stop_ids=stops, blind=blind)

        self._answer = {
            blind: compiled_together(jax.jit(functools.partial(answer, blind)))
            for blind in (False, True)
        }

    def of(self, params: Arrays, stats: Arrays) -> "Asker":
        """The same, compiled programs included, for other arrays."""
        other = copy.copy(self)
        other.params, other.stats = params, stats
        return other

    def ask(
        self,
        dataset: Dataset,
        *,
        blind: bool = False,
        permute: bool = False,
        shown: Sequence[int] | None = None,
        test_clips: bool = False,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[Asked]:
        """Every question of `dataset.questions`, in that order.

        blind: with the normalised frames zeroed. permute: with the order of the frames permuted, by
        `seed`. shown: the clip that each question is asked about, its own by default. test_clips:
        about each of the dataset's test clips; the answer that most of them give counts, of equally
        many the one that was given first.
        A question whose clip cannot be read is answered with the empty string and marked: it stays
        in every denominator. `progress` is called with the number of questions of each finished
        batch.
        """
        votes: list[Counter] = [Counter() for _ in dataset.questions]
        batches = eval_batches(
            dataset,
            batch=self.batch,
            max_questions=self.max_questions,
            permute_seed=seed if permute else None,
            shown=shown,
            test_clips=test_clips,
            host=self.share[0],
            hosts=self.share[1],
        )
        for questions in batches:
            placed = self.put(questions)
            given = self._answer[blind](self.params, self.stats, placed)
            answers, numbers, counts = self.fetch((given, placed.ids, placed.view_counts))
            new = 0
            for place in np.argwhere(numbers >= 0):
                number = numbers[tuple(place)]
                new += not votes[number]
                votes[number][self._text(answers[tuple(place)])] += int(counts[place[0]])
            if progress:
                progress(new)
        asked = (number for number, _ in dataset.questions)
        texts = [vote.most_common(1)[0][0] if vote else "" for vote in votes]
        unread = [not vote for vote in votes]
        return [Asked(*of) for of in zip(asked, dataset.turns, texts, unread, strict=True)]

    def warn_of_long(self, dataset: Dataset, split: str) -> None:
        """Warns where a true answer has more tokens than answers are given."""
        lengths = [len(self.tokenizer.encode(turn.answer)) for turn in dataset.turns]
        long = sum(length > self.max_new for length in lengths)
        if long:
            logging.warning(
                "%s: %d of %d true answers have more than config.evaluation.max_new=%d tokens and "
                "cannot be given exactly; raise it to %d",
                split, long, len(lengths), self.max_new, max(lengths),
            )  # fmt: skip

    def _text(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(before_stop(ids, self._stops)).strip()


def score(asked: Iterable[Asked]) -> tuple[dict[str, float], dict[str, int]]:
    """Accuracy and number of questions, over all and by question type."""
    asked = list(asked)
    return accuracy_by_type(
        [a.turn.kind for a in asked], [a.answer for a in asked], [a.turn.answer for a in asked]
    )
