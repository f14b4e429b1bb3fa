"""Judging what has not been judged yet: many items at a time, each verdict on disk as it comes."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from rvllm_jax.evaluation.answers.answer_file import ANSWERS, read_answers
from rvllm_jax.evaluation.judge.chat import JudgeError, NoReply, Stopped
from rvllm_jax.evaluation.judge.verdicts import (
    Item,
    Key,
    Verdict,
    VerdictsError,
    items,
    line,
)
from rvllm_jax.system.lines import JsonLines, read_lines

_IN_A_ROW = 10  # questions without a reply, of each thread, after which the endpoint is down


@dataclass
class Outcome:
    """What became of the items: judged now, before, and without a reply (id and reason).

    total: how many of them are for this judge.
    """

    total: int = 0
    judged: int = 0
    before: int = 0
    left: list[tuple[str, str]] = field(default_factory=list)


def judge_items(
    items: Iterable[Item],
    judge: Callable[[Item], Verdict],
    lines: JsonLines,
    before: dict[Key, str],
    *,
    concurrency: int = 1,
    give_up: bool = False,
    stop: threading.Event | None = None,
    progress: Callable[[int], None] = lambda judged: None,
) -> Outcome:
    """Judges the items that `before` has not, and adds their verdicts to `lines`.

    Items are drawn as threads get free, so that memory does not grow with their number. The first
    one is judged alone: it shows whether the judge can be used. An item that was not asked gets a
    failed verdict without the judge. One without a reply is left for the next time, or, with
    `give_up`, recorded as failed.

    Raises JudgeError where the judge cannot be used, or stopped replying; what was judged is on
    the disk. `stop`, once set, ends the work after what is being asked.
    """
    stop = stop or threading.Event()
    most = _IN_A_ROW * concurrency
    return _Work(iter(items), judge, lines, before, give_up, stop, progress, most).run(concurrency)


def check_before(items: Iterable[Item], before: dict[Key, str], where: str) -> None:
    """Raises VerdictsError unless each verdict in `before` is about one of `items` as it is now."""
    now = {item.key: item.of for item in items if item.key in before}
    other = [key for key, of in before.items() if now.get(key) != of]
    if other:
        gone = sum(key not in now for key in other)
        raise VerdictsError(
            f"{where}: {len(other)} of {len(before)} verdicts are about other answers than those "
            f"beside it now ({gone} are of questions that are not there), the first: "
            f"{' '.join(filter(None, other[0]))}. Judge them under another name (--name), or move "
            "the file away"
        )


def check_beside(path: Path) -> None:
    """`check_before` of a file of verdicts and the answers beside it, where there are any."""
    answers = path.parent / ANSWERS
    if path.is_file() and answers.is_file():
        before = {
            (line.get("pair") or line.get("question_id"), line.get("control"), line["criterion"]):
            line["of"] for _, line in read_lines(path) if line.keys() >= {"criterion", "of"}
        }  # fmt: skip
        if before:
            check_before(items(read_answers(answers), faithfulness=True), before, str(path))


@dataclass
class _Work:
    items: Iterator[Item]
    judge: Callable[[Item], Verdict]
    lines: JsonLines
    before: dict[Key, str]
    give_up: bool
    stop: threading.Event
    progress: Callable[[int], None]
    most_in_a_row: int
    outcome: Outcome = field(default_factory=Outcome)
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_a_row: int = 0  # questions without a reply

    def run(self, concurrency: int) -> Outcome:
        try:
            if (first := self._next(asked=True)) is not None:
                self._judge(first, alone=True)
        except Stopped:
            return self.outcome
        with ThreadPoolExecutor(concurrency) as pool:
            loops = [pool.submit(self._loop) for _ in range(concurrency)]
            try:
                for loop in as_completed(loops):
                    loop.result()
            except BaseException:
                self.stop.set()  # what is being asked is still written; nothing new is
                raise
        return self.outcome

    def _loop(self) -> None:
        try:
            while not self.stop.is_set() and (item := self._next()) is not None:
                self._judge(item)
        except Stopped:
            pass

    def _next(self, asked: bool = False) -> Item | None:
        """The next item to judge; with `asked`, all before it that need no judge are written."""
        while True:
            with self.lock:
                item = next(self.items, None)
                if item is not None and item.key in self.before:
                    self.outcome.before += 1
                    continue
            if item is None or not asked or not item.failed:
                return item
            self._judge(item)

    def _judge(self, item: Item, alone: bool = False) -> None:
        try:
            if item.failed:
                verdict = Verdict(failed=f"not answered: {item.failed}")
            else:
                verdict = self.judge(item)
        except NoReply as error:
            if alone:
                raise JudgeError(f"the judge does not reply: {error}") from error
            verdict = self._without_reply(item, error)
        else:
            self.in_a_row = 0
        if verdict is not None:
            record = line(item, verdict)
            with self.lock:
                self.lines.append(record)
                self.outcome.judged += 1
                self.progress(self.outcome.judged)

    def _without_reply(self, item: Item, error: NoReply) -> Verdict | None:
        with self.lock:
            self.in_a_row += 1
            if self.in_a_row >= self.most_in_a_row:
                raise JudgeError(
                    f"{self.in_a_row} questions in a row got no reply, the last: {error}; what was "
                    "judged is kept: repeat the command when the judge replies again"
                )
            if self.give_up:
                return Verdict(failed=f"no reply: {error}")
            self.outcome.left.append((item.question_id, str(error)))
            return None
