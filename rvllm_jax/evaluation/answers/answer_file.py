"""answers.jsonl of a benchmark: written as answers come, continued, never mixed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.answered import ANSWERS, INFO
from rvllm_jax.evaluation.answers.questions import EvaluationError, Key
from rvllm_jax.system.atomic import read_json, write_json
from rvllm_jax.system.lines import JsonLines, now, read_lines, unlike


class AnswerFile:
    """The file, open for one process. `done` are the questions that it holds, by id and control."""

    def __init__(self, lines: JsonLines, done: set[Key]):
        self._lines, self.done = lines, done

    @classmethod
    def open(cls, folder: Path, info: Mapping[str, Any], keys: set[Key]) -> "AnswerFile":
        """Begins folder/answers.jsonl, or takes it up; a half-written last line is cut off.

        info: info.json, whose "made_with" must be that of the answers which are there. keys: all
        that will be answered. Raises EvaluationError where the file is of another model, split or
        benchmark, or holds an answer twice or to a question that is not among `keys`; LinesError
        for a line that is broken or where another process is writing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lines = JsonLines(folder / ANSWERS)
        try:
            known = read_info_if_any(folder)
            _check_same(folder, known, info)
            done = cls._done(folder, info, keys)
            if done and not known:
                raise EvaluationError(
                    f"{folder}: {INFO}, which says what answered {ANSWERS}, is not there; restore "
                    "it, or name another --out"
                )
            if not known:
                started = {"complete": False, "date": now()}
                write_json(folder / INFO, dict(info) | started)
        except BaseException:
            lines.close()
            raise
        return cls(lines, done)

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        """All its lines."""
        return [record for _, record in read_lines(folder / ANSWERS)]

    @staticmethod
    def _done(folder: Path, info: Mapping[str, Any], keys: set[Key]) -> set[Key]:
        done: set[Key] = set()
        for where, record in read_lines(folder / ANSWERS):
            key = str(record.get("question_id")), str(record.get("control"))
            if key not in keys or record.get("split") != info["split"]:
                raise EvaluationError(
                    f"{where}: answers {key[0]!r} of split {record.get('split')!r}, which is no "
                    f"question of {info['benchmark']} {info['split']}; name another --out"
                )
            if key in done:
                raise EvaluationError(
                    f"{where}: answers {key[0]!r} a second time; remove one of its lines"
                )
            done.add(key)
        return done

    def append(self, record: dict[str, Any]) -> None:
        self._lines.append(record)

    def close(self) -> None:
        self._lines.close()


def read_info_if_any(folder: Path) -> dict[str, Any]:
    """What folder/info.json holds; {} where it is not there. Raises EvaluationError if broken."""
    return read_json(folder / INFO, absent={}, error=EvaluationError)


def _check_same(folder: Path, known: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    if not known:
        return
    there = known.get("made_with", {}) | {"benchmark": known.get("benchmark")}
    if others := unlike(there, info["made_with"] | {"benchmark": info["benchmark"]}):
        raise EvaluationError(
            f"{folder}: holds answers that were made otherwise, and answers are not mixed: "
            f"{others}. Continue with what they were made with, or name another --out"
        )
