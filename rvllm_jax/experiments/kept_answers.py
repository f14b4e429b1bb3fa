"""The answers that an earlier start gave to a file of questions, and what they were made with.

What is written beside the answers names the content of the model and of the videos: it is the same
wherever they lie, and another where they were replaced.
"""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.generation.clip_fusion import LOCK_STEP
from rvllm_jax.system import file_layout
from rvllm_jax.system.atomic import read_json, write_json
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import differing, file_crc
from rvllm_jax.system.lines import JsonLines, LinesError

OURS = ("answer", "answers", "error")  # keys of a line that are not the question's
_NAMED = 3  # how many videos a message names
_SETTINGS = ".settings.json"  # beside the answers: what they were made with
_OLDER = {"fusion": LOCK_STEP}  # settings of files from before there was a choice


class QuestionsError(RvllmError, ValueError):
    """A file of questions, or of answers, that cannot be used at all; says what to do."""


@dataclasses.dataclass
class KeptAnswers:
    """A file of answers, open for one process.

    `rows` are the lines, whole, that answer some of the questions, each with what `key` makes of
    it; all else that the file holds goes once `keep` is called.
    """

    file: JsonLines
    settings: dict[str, Any]
    before: Mapping[str, Any]
    rows: list[tuple[str, str]]
    compared: bool = False

    @classmethod
    def open(cls, out: Path, settings: dict[str, Any], keys: Iterable[str]) -> "KeptAnswers":
        """`out` as the file of answers of these settings to the questions of these keys.

        Raises QuestionsError where it holds other answers; changes nothing that is there.
        """
        path = out.with_name(out.name + _SETTINGS)
        if out.exists() and out.stat().st_size and not path.exists():
            raise QuestionsError(
                f"{out}: is there and was not written by this command; give another --out"
            )
        try:
            file = JsonLines(out, allow_nan=True)  # a line of the questions may hold one
        except LinesError as error:
            raise QuestionsError(str(error)) from error
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            if not out.stat().st_size:
                write_json(path, file_layout.ANSWERS.stamp(settings), indent=2)
            before = _OLDER | _read_settings(path)
            # Where the model's content is known its path does not count.
            apart = {"model"} if before.get("fingerprint") else set()
            other = [
                f"{name}: {before.get(name)} -> {value}"
                for name, value in settings.items()  # what is not there is not known
                if name in before and name not in apart and before[name] != value
            ]
            if other:
                raise _otherwise(out, "; ".join(other))
            rows = _rows(file.path.read_text(encoding="utf-8", errors="replace"), keys)
            stack.pop_all()
        return cls(file, settings, before, rows)

    def compare(self, fingerprint: str, videos: Mapping[str, Path]) -> list[str]:
        """Records that the answers are of the model of this fingerprint and of these files, by
        name; to be called before the first is added. Returns lines about what is not known.

        Raises QuestionsError where those that are kept are of another model or other files.
        """
        path, before = self.file.path, self.before.get("videos", {})
        now = {name: file_crc(file) for name, file in videos.items() if file.is_file()}
        kept, notes = {json.loads(row).get("video") for row, _ in self.rows}, []
        if kept:
            there = {"model": self.before.get("fingerprint")}
            if other := differing(there, {"model": fingerprint}):
                raise _otherwise(path, f"by another {other}")
            known = kept & before.keys() & now.keys()
            if replaced := sorted(name for name in known if before[name] != now[name]):
                named = ", ".join(replaced[:_NAMED]) + ", ..." * (len(replaced) > _NAMED)
                raise _otherwise(path, f"about other files than these {len(replaced)}: {named}")
            if not (there["model"] and kept <= before.keys()):
                notes.append(
                    f"{path}: an earlier version wrote it, and did not record the content of model "
                    "and videos: its answers are kept, and count as of those that are there now"
                )
        recorded = self.settings | {"fingerprint": fingerprint, "videos": {**before, **now}}
        recorded = file_layout.ANSWERS.stamp(recorded)
        if recorded != self.before:
            write_json(path.with_name(path.name + _SETTINGS), recorded, indent=2)
        self.compared = True
        return notes

    def close(self) -> None:
        self.file.close()

    def keep(self) -> None:
        """Cuts off what answers none of the questions."""
        text = "".join(row + "\n" for row, _ in self.rows)
        if text.encode() != self.file.path.read_bytes():
            self.file.replace(text)


def key(record: Mapping[str, Any]) -> str:
    """The same of a line that asks and of the one that answers it."""
    return json.dumps({k: v for k, v in record.items() if k not in OURS}, sort_keys=True)


def _read_settings(path: Path) -> dict[str, Any]:
    """Raises QuestionsError where the file is broken, LayoutError where it is newer."""
    advice = "restore the file, or give another --out"
    settings = read_json(path, error=QuestionsError, advice=advice)
    file_layout.ANSWERS.check(path, settings)
    crcs = settings.get("videos", {})
    if not isinstance(settings.get("model"), str) or not isinstance(crcs, dict):
        raise QuestionsError(
            f"{path}: expected a text under 'model' and an object under 'videos'; {advice}"
        )
    return settings


def _rows(text: str, keys: Iterable[str]) -> list[tuple[str, str]]:
    waiting, rows = collections.Counter(keys), []
    for row in text.split("\n"):
        try:
            record = json.loads(row)
        except ValueError:
            continue  # the end of the file, or no answer
        if isinstance(record, dict) and _is_answered(record) and waiting[key(record)]:
            waiting[key(record)] -= 1
            rows.append((row, key(record)))
    return rows


def _is_answered(record: Mapping[str, Any]) -> bool:
    """Whether it has an answer to each of its questions: what has not is asked again."""
    if "error" in record:
        return False
    if "questions" not in record:
        return isinstance(record.get("answer"), str)
    answers, asked = record.get("answers"), record["questions"]
    if not (isinstance(answers, list) and isinstance(asked, list)):
        return False
    return len(answers) == len(asked) and all(isinstance(each, str) for each in answers)


def _otherwise(out: Path, what: str) -> QuestionsError:
    return QuestionsError(
        f"{out}: holds answers made otherwise ({what}); give another --out, or remove it"
    )
