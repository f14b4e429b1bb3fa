"""Scores are shown beside the answers that they are of, and beside no others."""

import json
import shlex
import subprocess
import sys

import pytest

from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.evaluation.judge.judges import ExactJudge
from rvllm_jax.evaluation.judge.verdicts import VerdictsError
from rvllm_jax.evaluation.judging import judge_benchmark
from rvllm_jax.evaluation.score.compare import compare
from rvllm_jax.evaluation.score.scores import Scoring
from rvllm_jax.experiments.report.page import report
from rvllm_jax.experiments.report.results import read_results
from rvllm_jax.system.atomic import WriteError
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.lines import dump

SCORING = Scoring(resamples=20)


def answered(folder, model, answer="yes", **info):
    """OUT/own as `evaluate --model` would leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question_id": f"q{n}", "video": "v", "question": "?", "truth": "yes", "type": "",
            "criteria": [], "pair": "", "control": "", "answer": answer, "failed": "",
        }
        for n in range(2)
    ]  # fmt: skip
    (folder / "answers.jsonl").write_text("".join(map(dump, rows)))
    named = {"benchmark": "own", "split": "test", "questions": 2, "model": model}
    named["fingerprints"] = {"model": f"content of {model}", "questions": "the same"}
    (folder / "info.json").write_text(json.dumps(named | info))
    return folder


@pytest.fixture
def own(tmp_path):
    """A benchmark's folder that run1 answered and the exact judge judged."""
    folder = answered(tmp_path / "own", "run1")
    judge_benchmark(folder, ExactJudge(), SCORING)
    return folder


def without(path, *names):
    """The file as a version wrote it that did not know these keys."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in names}))


@pytest.mark.parametrize("answer", ["no", "yes"])  # which the other model may give too
def test_a_score_is_not_shown_under_another_model_s_name(own, tmp_path, answer):
    """Evaluated, judged, answers and info removed, another model evaluated into the same folder."""
    (scored,), notes = read_results([tmp_path])
    assert scored.model == "run1" and not notes
    answered(own, "run2", answer)
    results, (note,) = read_results([tmp_path])
    assert not results and "scores.exact.json: left out" in note
    assert "model: content of run1 there, content of run2 now" in note
    with pytest.raises(ValueError, match="left out, as it is of other answers"):
        report([tmp_path])
    with pytest.raises(VerdictsError, match="verdicts on other answers than those beside it now"):
        judge_benchmark(own, ExactJudge(), SCORING)
    judge_benchmark(own, ExactJudge(name="again"), SCORING)
    (scored,), notes = read_results([tmp_path])
    assert (scored.judge_name, scored.model, len(notes)) == ("again", "run2", 1)
    other = tmp_path / "other" / "own"
    judge_benchmark(answered(other, "run3", "perhaps"), ExactJudge(), SCORING)
    with pytest.raises(VerdictsError, match="other answers than those beside it"):
        compare([own / "judged.exact.jsonl", other / "judged.exact.jsonl"])


def test_answers_that_were_corrected_after_judging_have_no_score(own, tmp_path):
    answered(own, "run1", "no")
    results, (note,) = read_results([tmp_path])
    assert not results and "answers: " in note


def test_the_same_answers_given_again_keep_their_score(own, tmp_path):
    """In another order, and in another time."""
    lines = [json.loads(row) for row in (own / "answers.jsonl").read_text().splitlines()]
    (own / "answers.jsonl").write_text("".join(dump(row | {"seconds": 9.5}) for row in lines[::-1]))
    assert [len(part) for part in read_results([tmp_path])] == [1, 0]


def test_scores_of_an_earlier_version_are_known_by_their_verdicts(own, tmp_path):
    for name in ("scores.exact.json", "judged.exact.json"):
        without(own / name, "fingerprints")
    without(own / "info.json", "fingerprints")
    results, (note,) = read_results([tmp_path])
    assert len(results) == 1 and "did not record of which answers" in note
    judge_benchmark(own, ExactJudge(), SCORING)  # goes on
    without(own / "scores.exact.json", "fingerprints")
    answered(own, "run2", "no")
    results, (note,) = read_results([tmp_path])
    assert not results and "2 of 2 verdicts are about other answers" in note


def test_a_model_that_was_moved_is_the_same(own, tmp_path):
    answered(own, "moved", fingerprints={"model": "content of run1", "questions": "the same"})
    (scored,), notes = read_results([tmp_path])
    assert scored.model == "moved" and not notes
    judge_benchmark(own, ExactJudge(), SCORING)


def test_a_folder_given_twice_is_refused(tmp_path):
    answered(tmp_path / "own", "M")
    with pytest.raises(EvaluationError, match="--results: names .*twice"):
        read_results([tmp_path, f"{tmp_path}/own/.."])


def test_the_command_that_a_note_names_judges_the_answers(tmp_path):
    """A plain one would be refused: it would mix verdicts on two models' answers."""
    own = answered(tmp_path / "two words" / "own", "run1")
    judge_benchmark(own, ExactJudge(), SCORING)
    answered(own, "run2")
    _, (note,) = read_results([own.parent])
    command = shlex.split(note.partition("judge these: ")[2])
    assert command[:3] == ["python", "-m", "rvllm_jax.judge"]
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (scored,), (note,) = read_results([own.parent])
    assert (scored.judge_name, scored.model) == ("exact-2", "run2")
    assert "--name=exact-3" in note  # the other name is taken


def test_both_pages_are_written_or_neither_and_the_advice_can_be_followed(own, tmp_path):
    (tmp_path / "report.md").write_text("before")
    (tmp_path / "report.html").mkdir()  # as good as a disk that is full at the second file
    with pytest.raises(WriteError, match="report.html: .*Free some space, then start") as error:
        report([tmp_path])
    assert "another folder" not in str(error.value)  # there is no flag for one
    assert (tmp_path / "report.md").read_text() == "before"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("file", "key", "value"), [
    *(("info.json", "fingerprints", value) for value in ([1], "text")),
    ("info.json", "questions", "x"), ("info.json", "prior", [3]), ("info.json", "overlap", 3),
    ("info.json", "checkpoint", 3), ("info.json", "frames", 3), ("info.json", "lacks", [1]),
    ("scores.exact.json", "fingerprints", [1]), ("scores.exact.json", "judge.models", 3),
    ("scores.exact.json", "judge.parameters", [1]), ("scores.exact.json", "n", True),
    ("judged.exact.json", "parameters", [1]), ("judged.exact.json", "fingerprints", 3),
])  # fmt: skip
def test_a_key_of_another_kind_is_refused_by_file_and_key(tmp_path, file, key, value):
    folder = answered(tmp_path / "own", "M")
    judge_benchmark(folder, ExactJudge(), SCORING)
    content = part = json.loads((folder / file).read_text())
    *above, last = key.split(".")
    for name in above:
        part = part[name]
    part[last] = value
    (folder / file).write_text(json.dumps(content))
    start = report if file.startswith("scores") else judge_benchmark
    given = [[tmp_path]] if start is report else [folder, ExactJudge(), SCORING]
    with pytest.raises(RvllmError, match=f"{file}: {key} is .*expected"):
        start(*given)
    if file == "info.json":
        with pytest.raises(RvllmError, match=f"{file}: {key} is .*expected"):
            report([tmp_path])
