"""What is judged, by whom, and the verdicts: the lines of judged.NAME.jsonl.

An item is one answer, one answer by one criterion, or two answers together. What the verdicts were
made with stands beside them, in judged.NAME.json.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.answer_file import Answer
from rvllm_jax.system.atomic import write_json
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.file_layout import VERDICTS
from rvllm_jax.system.fingerprint import SHORT, differing, digest
from rvllm_jax.system.lines import JsonLines, now, read_lines, unlike

QA, CONSISTENCY, FAITHFULNESS = "", "C", "F"  # what is judged by, beside the other criteria
LARGEST = 5.0  # of scores; the smallest is 0
JUDGE = ("backend", "model", "fingerprint", "prompts_sha256", "parameters")  # whose verdicts
_NOT_COMPARED = ("created", "base_url")  # an endpoint that moves is the same judge
_KINDS = {"fingerprints": dict, "parameters": dict}  # keys of judged.NAME.json

Key = tuple[str, str, str]  # id of a question or pair, control, criterion


class VerdictsError(RvllmError, ValueError):
    """Verdicts that do not fit together or to the answers; says where, and what to do."""


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
    reference: str
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
        return digest(["\0".join([*self.questions, self.reference])], SHORT)

    @property
    def of(self) -> str:
        """Another where anything is that a judge sees."""
        parts = [self.asked, self.type, *self.answers, self.failed]
        return digest(["\0".join(parts)], SHORT)


def items(answers: Iterable[Answer], *, faithfulness: bool = False) -> Iterator[Item]:
    """What there is to judge of `answers`, as they come; one of a pair waits for the other.

    faithfulness: whether every answer is compared, fact by fact, with its reference too.
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
        reference=first.truth,
        answers=tuple(answer.answer for answer in answers),
        failed="; ".join(dict.fromkeys(filter(None, map(_failed, answers)))),
    )


def _failed(answer: Answer) -> str:
    return answer.failed or ("" if answer.answer.strip() else "the answer is empty")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """One item judged.

    `correct`: yes or no; None where the criterion has none. `score`: 0 to 5, or None. `overlap`:
    share of an answer's facts that the reference has, or None. `failed`: why there is no verdict:
    the question was not answered, or the judge's replies could not be read. `raw`: all its replies.
    `tokens`: those of all replies together. `more`: what else this kind of judge gives.
    """

    correct: bool | None = None
    score: float | None = None
    overlap: float | None = None
    failed: str = ""
    raw: tuple[str, ...] = ()
    model: str = ""
    tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Judge:
    """What gives verdicts on items.

    name: of its files. faithfulness: whether it compares answers with their references, fact by
    fact. concurrency: how many items it is given at a time.
    """

    name: str
    faithfulness: bool = False
    concurrency: int = 1

    def made_with(self, benchmark: str) -> dict[str, Any]:
        """All that verdicts on a benchmark depend on: backend, model as asked for, parameters."""
        raise NotImplementedError

    def judge(self, item: Item, benchmark: str) -> Verdict:
        raise NotImplementedError

    def chosen(self, item: Item) -> bool:
        """Whether an item is for it."""
        return True

    def check(self, item: Item) -> None:
        """Raises for an item that it cannot judge; called before any is judged."""


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A line of a file of verdicts, without the replies."""

    key: Key
    question_id: str
    control: str
    criterion: str
    video: str
    type: str
    asked: str
    of: str
    answered: bool
    correct: bool | None
    score: float | None
    overlap: float | None
    failed: str
    model: str
    date: str
    tokens: Mapping[str, int]
    more: Mapping[str, Any]


def paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of verdicts of a judge called `name`, and of what they were made with."""
    return folder / f"judged.{name}.jsonl", folder / f"judged.{name}.json"


def line(item: Item, verdict: Verdict) -> dict[str, Any]:
    """The record of one verdict."""
    return {
        "question_id": item.question_id,
        "control": item.control,
        "pair": item.pair,
        "criterion": item.criterion,
        "video": item.video,
        "type": item.type,
        "correct": verdict.correct,
        "score": verdict.score,
        "overlap": verdict.overlap,
        "raw": list(verdict.raw),
        "attempts": len(verdict.raw),
        "failed": verdict.failed,
        "answered": not item.failed,
        "model": verdict.model,
        "tokens": dict(verdict.tokens),
        "date": now(),
        "asked": item.asked,
        "of": item.of,
        **verdict.more,
    }


_FIELDS = {name: (str,) for name in (
    "question_id", "control", "pair", "criterion", "video", "type", "asked", "of", "failed",
    "model", "date",
)} | {"answered": (bool,), "tokens": (dict,), "correct": (bool, type(None)),
      "score": (int, float, type(None)), "overlap": (int, float, type(None))}  # fmt: skip


def read_judged(path: str | Path) -> Iterator[Judged]:
    """The verdicts of a file, an item once. Raises VerdictsError or LinesError."""
    keys: set[Key] = set()
    for where, record in read_lines(path):
        for name, kinds in _FIELDS.items():
            if name not in record or not isinstance(record[name], kinds):
                raise VerdictsError(
                    f"{where}: {name} is {record.get(name)!r:.50}; expected the lines that "
                    "`python -m rvllm_jax.judge` writes. Remove the line, and it is judged again"
                )
        for name, largest in (("score", LARGEST), ("overlap", 1.0)):
            value = record[name]
            if isinstance(value, bool) or value is not None and not 0 <= value <= largest:
                raise VerdictsError(
                    f"{where}: {name} is {value}, expected 0 to {largest:g} or null. Remove the "
                    "line, and it is judged again"
                )
        known = {name: record[name] for name in _FIELDS if name != "pair"}
        key = record["pair"] or record["question_id"], record["control"], record["criterion"]
        if key in keys:
            raise VerdictsError(f"{path}: holds {key} twice; remove one of its lines")
        keys.add(key)
        more = {k: v for k, v in record.items() if k not in (*_FIELDS, "raw", "attempts")}
        yield Judged(key=key, more=more, **known)


def read_made_with(path: Path) -> dict[str, Any] | None:
    """What a file of verdicts was made with; None where there is none yet."""
    return VERDICTS.read(path, absent={}, error=VerdictsError, kinds=_KINDS) or None


def open_verdicts(
    folder: Path, name: str, made_with: Mapping[str, Any]
) -> tuple[JsonLines, dict[Key, str]]:
    """The file that verdicts are added to, and the items it holds: key -> `Item.of`.

    made_with: all that verdicts depend on beside the answers. Raises VerdictsError where the file
    was made with anything else, as `read_judged`, and LinesError where another process has it.
    """
    path, made_with_path = paths(folder, name)
    lines = JsonLines(path)
    try:
        known = read_made_with(made_with_path)
        if known is None:
            if path.stat().st_size:
                raise VerdictsError(
                    f"{path}: {made_with_path.name}, which says what judged it, is not there; "
                    "restore it, or move the file away"
                )
            made_with = VERDICTS.stamp({**made_with, "created": now()})
            write_json(made_with_path, made_with, allow_nan=False)
        else:
            _check_same(path, known, made_with)
        return lines, {judged.key: judged.of for judged in read_judged(path)}
    except BaseException:
        lines.close()
        raise


def judge_of(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a judge another one. A model of ours with a fingerprint is the same wherever it
    lies and whatever its step is called."""
    judge = {name: made_with[name] for name in JUDGE if made_with.get(name) is not None}
    if "fingerprint" in judge:
        judge |= {"model": None, "parameters": dict(judge.get("parameters", {}), step=None)}
    return judge


def _check_same(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    if others := differing(known.get("fingerprints"), wanted.get("fingerprints")):
        raise VerdictsError(
            f"{path}: holds verdicts on other answers than those beside it now: {others}. Judge "
            f"these under another name (--name), or move {path.stem}.* away"
        )
    if "fingerprint" not in known:  # of an earlier version, which went by path and step
        wanted.pop("fingerprint", None)
    apart = (*_NOT_COMPARED, "fingerprints", *JUDGE)
    known, wanted = (
        {name: value for name, value in made.items() if name not in apart} | judge_of(made)
        for made in (known, wanted)
    )
    if others := unlike(known, wanted, longest=80):
        raise VerdictsError(
            f"{path}: was judged otherwise, and verdicts are not mixed: {others}. "
            "Judge under another name (--name), or as before"
        )
