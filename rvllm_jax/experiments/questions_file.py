"""Many questions about many videos: JSON lines in, JSON lines out.

A line asks {"video": FILE, "question": TEXT} or {"video": FILE, "questions": [TEXT, ...]}, each a
first turn without history. The line that comes out has all keys of the one that came in, and
"answer", "answers" or "error"; both of the last where some of its questions cannot be asked, whose
answers are null. Lines about one video follow each other there, in the order in which the videos
first appear: each is decoded and encoded once.
"""

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rvllm_jax.data.annotations.example import AnnotationError, checked_video, decode_text
from rvllm_jax.data.annotations.video_names import readable
from rvllm_jax.data.batches.loose_videos import VideoClips
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import ChatTemplateError
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.kept_answers import OURS, KeptAnswers, QuestionsError, key
from rvllm_jax.experiments.saved.open import how_computed
from rvllm_jax.generation.prompts import PromptError
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.system.lock import locked


@dataclasses.dataclass
class Line:
    """One line of the file of questions, and why it, or a part of it, is not asked."""

    record: dict[str, Any]
    video: str = ""
    questions: tuple[str, ...] = ()
    first: int = 0  # how many questions stand before it in the file
    fault: str = ""  # of the whole line
    wrong: dict[int, str] = dataclasses.field(default_factory=dict)  # by the index of a question

    @property
    def key(self) -> str:
        """By which its answer is known among those of an earlier start."""
        return key(self.record)

    @property
    def asked(self) -> list[int]:
        """The indices of the questions that can be asked."""
        return [n for n in range(len(self.questions)) if not self.fault and n not in self.wrong]

    @property
    def error(self) -> str:
        """What is wrong with the line, or with which of its questions; "" where nothing is."""
        several = len(self.questions) > 1
        reasons = [
            f"question {n + 1}: {why}" * several or why for n, why in sorted(self.wrong.items())
        ]
        return self.fault or "; ".join(reasons)


@dataclasses.dataclass
class Tally:
    """How many questions of a file have an answer now, and how many have none."""

    answered: int = 0
    failed: int = 0
    before: int = 0  # of those answered, by an earlier start


def read(path: str | Path, *, anywhere: bool = True) -> list[Line]:
    """The lines of a file of questions; raises QuestionsError or AnnotationError.

    A line that asks nothing is among them, with its error. anywhere: False refuses videos that are
    not inside a folder, as annotations do.
    """
    lines: list[Line] = []
    first = 0
    for number, text in enumerate(decode_text(path).split("\n"), 1):
        if text.strip():
            line = _line(text, number, path)
            if not anywhere and not line.fault:
                try:
                    checked_video(line.video)
                except AnnotationError as error:
                    line.fault = str(error)
            line.first, first = first, first + len(line.questions)
            lines.append(line)
    if not lines:
        raise QuestionsError(f"{path}: holds no questions")
    return lines


def _line(text: str, number: int, path: str | Path) -> Line:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Line({"line": number}, fault=f"not JSON: {error}")
    if not isinstance(record, dict):
        return Line({"line": number}, fault=f"expected an object, got {type(record).__name__}")
    taken = [key for key in OURS if key in record]
    if taken:
        raise QuestionsError(
            f"{path}: line {number} has the key {taken[0]!r}, which the answers use; rename it"
        )
    video, asked = record.get("video"), record.get("questions", [record.get("question")])
    if not isinstance(video, str) or not video.strip():
        return Line(record, fault=f"'video' must name a file, got {video!r}")
    if ("question" in record) == ("questions" in record):
        return Line(record, video, fault="needs one of 'question' and 'questions'")
    if not isinstance(asked, list) or not asked:
        return Line(record, video, fault=f"expected text to ask, got {asked!r:.80}")
    texts = tuple(q if isinstance(q, str) else "" for q in asked)
    no_text = {n: q for n, q in enumerate(asked) if not isinstance(q, str)}
    wrong = {n: f"expected text to ask, got {q!r:.80}" for n, q in no_text.items()}
    return Line(record, video, texts, wrong=wrong)


def answer_file(
    answerer: Answerer,
    questions: str | Path,
    out: str | Path,
    config: GenerationConfig,
    *,
    videos: str | Path = "",
    batch: int = 8,
    say: Callable[[str], None] = lambda line: None,
) -> Tally:
    """Writes a line to `out` for every line of `questions`, as it is answered.

    What `out` holds of an earlier start with the same settings is kept, except what failed, which
    is tried again. With equal settings an answer does not depend on where the work was stopped:
    question number n of the file gets seed + n.

    Args:
        videos: the folder that the videos lie in, and that no name may leave; "": they are paths.
        batch: how many questions about a video are answered together.

    Raises:
        QuestionsError, AnnotationError: before anything is computed. LockError: another process
            is writing `out`.
    """
    lines = read(questions, anywhere=not str(videos))
    out, description = Path(out), answerer.description
    settings = {
        "model": description.identity,
        "template": description.recipe.data.template,
        "stop_ids": list(prompt.stop_ids(description.tokenizer, description.template)),
        "clips": answerer.clips,
        "fusion": answerer.fusion,
        "cache_dtype": answerer.cache_dtype or "",
        **how_computed(description.recipe),
        **json.loads(json.dumps(dataclasses.asdict(config))),
    }
    with (
        locked(out, is_file=True, advice="give another --out"),
        contextlib.closing(KeptAnswers.open(out, settings, [line.key for line in lines])) as kept,
    ):
        paths = {line.video: Path(videos) / line.video for line in lines if line.asked}
        work = _Work(answerer, config, batch, kept, paths, say)
        done, tally = work.go_on(lines), work.tally
        groups: dict[str, list[Line]] = collections.defaultdict(list)
        for line in lines:
            if id(line) not in done and work.stands(line):
                groups[line.video].append(line)
        seen = answerer.load_videos([Path(videos) / video for video in groups])
        for number, ((video, asked), clips) in enumerate(zip(groups.items(), seen, strict=True), 1):
            start, answered = time.perf_counter(), tally.answered
            work.about(video, clips, asked)
            say(
                f"[{number}/{len(groups)}] {readable(video)}: "
                f"{tally.answered - answered} answers in {time.perf_counter() - start:.1f} s; "
                f"{tally.answered} answered, {tally.failed} failed so far"
            )
    return tally


@dataclasses.dataclass
class _Work:
    answerer: Answerer
    config: GenerationConfig
    batch: int
    kept: KeptAnswers
    paths: Mapping[str, Path]
    say: Callable[[str], None]
    tally: Tally = dataclasses.field(default_factory=Tally)

    def go_on(self, lines: list[Line]) -> set[int]:
        """The lines (by `id`) that have their answers; what else the file of answers holds goes."""
        if self.kept.rows:
            self._compare()
        self.kept.keep()
        waiting: dict[str, list[Line]] = collections.defaultdict(list)
        for line in reversed(lines):
            waiting[line.key].append(line)
        done = {id(line): line for line in (waiting[key].pop() for _, key in self.kept.rows)}
        self.tally.before = sum(len(line.questions) for line in done.values())
        self.tally.answered = self.tally.before
        return set(done)

    def _compare(self) -> None:
        """Reads the model, whose answers these are from now on."""
        for note in self.kept.compare(self.answerer.fingerprint, self.paths):
            self.say(note)

    def about(self, video: str, seen: VideoClips | VideoError, lines: list[Line]) -> None:
        """Answers the lines about one video, or says why not."""
        asked = [line for line in lines if self.stands(line, seen)]
        if not asked:
            return
        if not self.kept.compared:
            self._compare()
        session = self.answerer.session(seen, readable(video))
        flat = [(line, n) for line in asked for n in line.asked]
        answers: dict[int, dict[int, str]] = collections.defaultdict(dict)
        for at in range(0, len(flat), self.batch):
            batch = flat[at : at + self.batch]
            seeds = [self.config.seed + line.first + n for line, n in batch]
            texts = [line.questions[n] for line, n in batch]
            predictions = session.predict(texts, seeds=seeds, **vars(self.config))
            for (line, n), prediction in zip(batch, predictions, strict=True):
                answers[id(line)][n] = prediction.text
                if len(answers[id(line)]) == len(line.asked):
                    self._write(line, answers[id(line)])

    def stands(self, line: Line, seen: VideoClips | VideoError | None = None) -> bool:
        """Whether a line has a question that can be asked, by itself or about a video; it is
        written where not."""
        if isinstance(seen, VideoError):
            line.fault = str(seen)
        elif seen is not None:
            for n in line.asked:
                try:
                    self.answerer.check(seen, line.questions[n])
                except (PromptError, ChatTemplateError) as error:
                    line.wrong[n] = str(error)
        if not line.asked:
            self._write(line)
        return bool(line.asked)

    def _write(self, line: Line, answers: Mapping[int, str] = MappingProxyType({})) -> None:
        """answers: by the index of their question."""
        count, result = len(line.questions), {}
        if answers:
            texts = [answers.get(n) for n in range(count)]
            result = {"answers": texts} if "questions" in line.record else {"answer": texts[0]}
        if line.error:
            result["error"] = line.error
        self.tally.answered += len(answers)
        self.tally.failed += max(1, count) - len(answers)
        self.kept.file.append({**line.record, **result})
