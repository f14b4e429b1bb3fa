"""What is judged: one answer, one answer by one criterion, or two answers together."""

import dataclasses
from collections.abc import Iterable, Iterator

from rvllm_jax.evaluation.answers.answered import Answer, digest

QA, CONSISTENCY, FAITHFULNESS = "", "C", "F"  # criteria beside those of `answered.CRITERIA`
Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """What one verdict is about; two questions and answers where the criterion is "C"."""

    question_id: str
    pair: str
    control: str
    criterion: str
    video: str
    type: str
    questions: tuple[str, ...]
    truth: str
    answers: tuple[str, ...]
    failed: str  # why a question was not asked: then there is nothing to judge

    @property
    def key(self) -> Key:
        """What names it within a file of verdicts."""
        return self.pair if self.criterion == CONSISTENCY else self.question_id, self.control, \
            self.criterion  # fmt: skip

    @property
    def asked(self) -> str:
        """The same for everybody's answers to the same questions, whatever the videos' files are
        called."""
        return digest(*self.questions, self.truth)

    @property
    def of(self) -> str:
        """Another where anything is that a judge sees."""
        return digest(self.asked, self.type, *self.answers, self.failed)


def items(answers: Iterable[Answer], *, faithfulness: bool = False) -> Iterator[Item]:
    """What there is to judge of `answers`, as they come; one of a pair waits for the other.

    faithfulness: whether every answer is compared, fact by fact, with its truth too.
    """
    waiting: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        if not answer.criteria:
            yield _item(QA, answer)
        for criterion in answer.criteria:
            if criterion != CONSISTENCY:
                yield _item(criterion, answer)
            elif (answer.pair, answer.control) in waiting:
                yield _item(criterion, waiting.pop((answer.pair, answer.control)), answer)
            else:
                waiting[answer.pair, answer.control] = answer
        if faithfulness:
            yield _item(FAITHFULNESS, answer)


def _item(criterion: str, *answers: Answer) -> Item:
    first = answers[0]
    return Item(
        question_id=first.question_id,
        pair=first.pair if criterion == CONSISTENCY else "",
        control=first.control,
        criterion=criterion,
        video=first.video,
        type=first.type,
        questions=tuple(answer.question for answer in answers),
        truth=first.truth,
        answers=tuple(answer.answer for answer in answers),
        failed="; ".join(dict.fromkeys(filter(None, map(_failed, answers)))),
    )


def _failed(answer: Answer) -> str:
    return answer.failed or ("" if answer.answer.strip() else "the answer is empty")
