import json

import numpy as np
import pytest

from rvllm_jax.evaluation.judge.verdicts import Verdict, VerdictsError, items, line, open_verdicts
from rvllm_jax.evaluation.score.compare import compare, kappa
from rvllm_jax.evaluation.score.text import comparison_lines


@pytest.fixture
def write(tmp_path, answer):
    """write(out, judge, rights, ...) -> a file of verdicts on as many questions."""

    def write(out, judge, rights, *, scores=None, said="no", split="test", benchmark="msvd_qa",
              prefix="q", failed=(), truth="yes", **made):  # fmt: skip
        folder = tmp_path / out
        folder.mkdir(exist_ok=True)
        made_with = {"backend": "openai", "model": judge, "benchmark": benchmark, "split": split}
        made_with |= made
        lines, _ = open_verdicts(folder, judge, made_with)
        answers = [
            answer(f"{prefix}{n}", video=f"v{n // 2}", answer=said, type=str(n % 2), truth=truth)
            for n in range(len(rights))
        ]
        scores = scores or [4.0 if right else 1.0 for right in rights]
        with lines:
            for n, item in enumerate(items(answers)):
                verdict = Verdict(correct=rights[n], score=scores[n], model=judge)
                lines.append(line(item, Verdict(failed="x") if n in failed else verdict))
        return folder / f"judged.{judge}.jsonl"

    return write


RIGHT_A = [True, True, False, True, False, True]
RIGHT_B = [True, False, False, True, True, False]


def test_two_models_by_one_judge(write):
    a = write("a", "j", RIGHT_A, said="a")
    b = write("b", "j", RIGHT_B, said="b", failed=(0,))
    found = compare([a, b])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    (pair,) = found["pairs"]
    gaps = np.array(RIGHT_A, float) - np.array([0, *RIGHT_B[1:]], float)
    assert pair["models"]["accuracy"]["value"] == pytest.approx(gaps.mean())
    assert pair["models"]["accuracy"]["low"] <= gaps.mean() <= pair["models"]["accuracy"]["high"]
    assert pair["models"]["score"]["value"] == pytest.approx((3.0 * gaps.sum() + 1) / 6)
    by_type = pair["models"]["accuracy_by_type"]
    assert by_type["0"]["value"] == pytest.approx(gaps[::2].mean())
    (back,) = compare([b, a])["pairs"]
    assert back["models"]["accuracy"]["value"] == -pair["models"]["accuracy"]["value"]


def test_a_judge_of_ours_that_was_moved_is_one_judge_and_one_trained_again_another(write):
    a = write("a", "j", RIGHT_A, said="a", fingerprint="x")
    b = write("b", "j", RIGHT_B, said="b", fingerprint="x", model="elsewhere/j")
    c = write("c", "j", RIGHT_B, said="b", fingerprint="y")
    assert "models" in compare([a, b])["pairs"][0]
    with pytest.raises(VerdictsError, match="answers differ, and so do the judges"):
        compare([a, c])


def test_the_same_draws_for_both_make_a_constant_difference_certain(write):
    """Paired: where one is right in all and the other in none, nothing is left to chance."""
    rng = np.random.default_rng(0)
    first = rng.random(60) * 3
    a = write("a", "j", [True] * 60, said="a", scores=list(first + 1))
    b = write("b", "j", [True] * 60, said="b", scores=list(first))
    (pair,) = compare([a, b])["pairs"]
    assert pair["models"]["score"]["low"] == pytest.approx(1.0)
    assert pair["models"]["score"]["high"] == pytest.approx(1.0)


def test_two_judges_of_one_model(write):
    a = write("a", "j", RIGHT_A, failed=(5,))
    b = write("a", "k", RIGHT_B)
    found = compare([a, b])
    judges = found["pairs"][0]["judges"]
    assert judges["n"] == 5 and judges["without_verdict"] == 1
    assert judges["confusion"] == {"yes/yes": 2, "yes/no": 1, "no/yes": 1, "no/no": 1}
    assert judges["agree"] == 3 / 5
    assert judges["kappa"] == pytest.approx((0.6 - 0.52) / 0.48)
    assert judges["score_difference"] == pytest.approx(0.0)
    assert judges["absolute_score_difference"] == pytest.approx(6 / 5)
    spread = found["spread"]["accuracy"]
    assert spread["values"] == [3 / 6, 3 / 6] and spread["standard_deviation"] == 0


def test_failed_verdicts_are_told_and_a_file_of_them_alone_is_refused(write):
    a, b = write("a", "j", RIGHT_A, failed=(1, 2)), write("a", "k", RIGHT_B)
    found = compare([a, b])
    assert [(f["answered"], f["unjudged"]) for f in found["files"]] == [(6, 2), (6, 0)]
    lines = list(comparison_lines(found))
    assert [line for line in lines if "2 of 6 verdicts failed; they count as wrong" in line]
    assert [line for line in lines if "4 answers judged by both, 2 not by both" in line]
    assert not [line for line in comparison_lines(compare([write("b", "k", RIGHT_B, said="b"), b]))
                if "verdicts failed" in line]  # fmt: skip
    with pytest.raises(VerdictsError, match="none of its 6 verdicts could be read"):
        compare([write("c", "j", RIGHT_A, failed=range(6)), b])


def test_a_file_named_twice_is_refused(write):
    a = write("a", "j", RIGHT_A)
    with pytest.raises(VerdictsError, match="named twice"):
        compare([a, str(a)])


def test_the_spread_over_seeds(write):
    paths = [write("a", f"j.seed{n}", [n > 0, n > 1, True, False]) for n in range(3)]
    found = compare(paths)
    assert len(found["pairs"]) == 3
    spread = found["spread"]["accuracy"]
    assert spread["values"] == [0.25, 0.5, 0.75] and spread["mean"] == 0.5
    assert spread["standard_deviation"] == 0.25
    assert (spread["smallest"], spread["largest"]) == (0.25, 0.75)


@pytest.mark.parametrize(
    "pairs, agree, expected",
    [
        ([(True, True), (False, False)], 1.0, 1.0),
        ([(True, False), (False, True)], 0.0, -1.0),
        ([(True, True), (True, False), (False, True), (False, False)], 0.5, 0.0),
        ([(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10
         + [(False, False)] * 15, 0.7, 0.4),  # the worked example in Wikipedia's article
        ([(True, True)] * 3, 1.0, None),
    ],
)  # fmt: skip
def test_kappa(pairs, agree, expected):
    observed, found = kappa(pairs)
    assert observed == agree and found == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(split="validation"), "split 'test'.*of 'validation'"),
        (dict(benchmark="msrvtt_qa"), "benchmark 'msvd_qa'.*of 'msrvtt_qa'"),
        (dict(rights=RIGHT_B[:4]), "2 items are in one of them alone"),
        (dict(prefix="other"), "12 items are in one of them alone"),
        (dict(truth="no"), "6 ids stand for other questions or references"),
        (dict(judge="k", said="b"), "the answers differ, and so do the judges"),
    ],
)
def test_what_cannot_be_compared(write, changes, told):
    a = write("a", "j", RIGHT_A)
    given = dict(out="b", judge="j", rights=RIGHT_B, said="b") | changes
    with pytest.raises(VerdictsError, match=told):
        compare([a, write(**given)])


def test_files_that_are_none(write, tmp_path):
    a = write("a", "j", RIGHT_A)
    with pytest.raises(VerdictsError, match=f"got {a} to compare"):
        compare([a])
    with pytest.raises(VerdictsError, match="expected a file judged.NAME.jsonl"):
        compare([a, tmp_path / "scores.j.json"])
    a.with_suffix(".json").unlink()
    with pytest.raises(VerdictsError, match="judged.j.json is not there"):
        compare([a, write("b", "j", RIGHT_A)])
