"""The results page, of results written as `evaluate` and `judge` write them."""

import json

import pytest

from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.experiments.report import plots
from rvllm_jax.experiments.report.page import report
from rvllm_jax.experiments.report.tables import solved_blind
from rvllm_jax.system.lock import LockError, locked


def estimate(value, low=None, high=None, n=40):
    return {"value": value, "low": low, "high": high, "n": n}


def write(out, *, benchmark="msvd_qa", split="validation", judge="exact", model="run", **scores):
    folder = out / benchmark
    folder.mkdir(parents=True, exist_ok=True)
    overlap = {"known": True, "complete": True, "videos": [], "told": "0 of 9 videos"}
    info = {
        "benchmark": benchmark, "split": split, "model": f"/runs/{model}", "complete": True,
        "clips": "1x1", "max_new": 8, "overlap": overlap, "frames": "/nowhere", "partial": False,
        "prior": {"how": "by others", "rule": "equal", "accuracy": {"all": 0.125, "what": 0.25}},
    }  # fmt: skip
    (folder / "info.json").write_text(json.dumps(info))
    content = {
        "benchmark": benchmark, "split": split, "n": 40,
        "failed": {"unanswered": 3, "unjudged": 2},
        "judge": {"backend": judge, "model": judge, "models": {judge: 40}, "dates": ["d", "d"]},
        "accuracy": estimate(0.6210, 0.58, 0.663),
        "by_type": {"what": {"accuracy": estimate(0.5, 0.4, 0.6)},
                    "<who>": {"accuracy": estimate(0.75, None, None)}},
        "controls": {"blind": {"n": 20, "accuracy": estimate(0.2, 0.1, 0.3),
                               "own": {"accuracy": estimate(0.6, 0.5, 0.7)}}},
        "without_training_videos": {"videos_left_out": 0, "n": 40},
        **scores,
    }  # fmt: skip
    (folder / f"scores.{judge}.json").write_text(json.dumps(content))
    return folder


def page(*outs):
    report(outs)
    return (outs[0] / "report.md").read_text(), (outs[0] / "report.html").read_text()


def row(text, name):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")][:1]
    return found


def test_our_numbers_stand_beside_published_ones_with_judge_and_split(tmp_path):
    write(tmp_path)
    text, html = page(tmp_path)
    ours = row(text, "run")
    assert "62.1 [58.0, 66.3]" in ours and "| 40 | 3 | 2 | exact | validation |" in ours
    theirs = row(text, "Video-ChatGPT")
    assert "64.9" in theirs and "gpt-3.5-turbo" in theirs and "| validation |" in theirs
    assert "78.3" in row(text, "ResNetVLLM") and "70.7" in row(text, "Video-LLaVA")
    assert "numbers of different judges cannot be compared" in text
    assert "numbers of different splits cannot be compared" in text
    assert "49.3" not in text  # of another benchmark
    for outside in ("http://", "https://", 'src="/', "<script", "<who>"):
        assert outside not in html
    assert "&lt;who&gt;" in html and row(text, "<who>") and html.count("data:image/png;base64") == 2


def test_two_judges_are_never_in_one_chart_and_one_alone_is_not_warned_of(tmp_path, monkeypatch):
    bars, drawn = plots.bars, []

    def seen(title, rows, **how):
        drawn.append((title, [name for name, *_ in rows]))
        return bars(title, rows, **how)

    monkeypatch.setattr(plots, "bars", seen)
    write(tmp_path, benchmark="own")
    assert "cannot be compared" not in page(tmp_path)[0]
    write(tmp_path, benchmark="own", judge="other-judge")
    drawn.clear()
    assert "2 different judges (exact; other-judge)" in page(tmp_path)[0]
    overall = [rows for title, rows in drawn if "by type" not in title]
    assert overall == [["run", "run, blind"]] * 2


def test_one_model_asked_in_two_ways_is_two_judges(tmp_path):
    judge = {"backend": "openai", "model": "j", "models": {"j": 40}, "prompts_sha256": "ab" * 32}
    for out, parameters, integer in (
        ("a", {"temperature": 0.0, "max_tokens": 256, "tries": 3}, False),
        ("b", {"temperature": 0.7, "seed": 3, "max_tokens": 256, "tries": 3}, False),
        ("c", {"temperature": 0.0, "max_tokens": 256, "tries": 3}, True),
    ):
        folder = write(tmp_path / out, benchmark="own", integer_scores=integer)
        path = folder / "scores.exact.json"
        told = json.loads(path.read_text()) | {"judge": judge | {"parameters": parameters}}
        path.write_text(json.dumps(told))
    text, _ = page(*(tmp_path / out for out in "abc"))
    named = "j, prompts abababab, temperature"
    assert f"| {named} 0 | validation |" in text
    assert (
        f"3 different judges ({named} 0; {named} 0, scores cut to whole numbers; "
        f"{named} 0.7, seed 3)" in text
    )


def test_the_commonest_answers_of_numbered_types_stand_beside_their_names(tmp_path):
    types = {
        name: {"types": own, "accuracy": estimate(0.5, 0.4, 0.6, n=n)}
        for name, own, n in (
            *(("motion", ["0"], 9), ("yes/no", ["3"], 30), ("color", ["4"], 10)),
            ("free", ["3", "4"], 40),
        )
    }
    folder = write(tmp_path, benchmark="activitynet_qa", split="test", by_type=types)
    path = folder / "info.json"
    prior = {"how": "h", "rule": "r", "accuracy": {"all": 0.4, "3": 0.6, "4": 0.2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": prior}))
    text, _ = page(tmp_path)
    assert "| yes/no | 30 | 50.0 [40.0, 60.0] | 60.0 |" in text
    assert "| free | 40 | 50.0 [40.0, 60.0] | 50.0 |" in text
    assert "| motion | 9 | 50.0 [40.0, 60.0] | - |" in text  # none is known


def test_where_nothing_was_judged_no_score_and_no_failure_of_the_model_is_shown(tmp_path):
    failed = {"failed": {"unanswered": 0, "unjudged": 40}, "answered": 40}
    types = {"what": {"accuracy": estimate(None)}, "who": {"accuracy": estimate(None)}}
    none = dict(accuracy=estimate(None), by_type=types, controls={}, **failed)
    folder = write(tmp_path, benchmark="own", **none)
    answer = dict(question_id="q", control="", video="v", question="?", truth="t", answer="t",
                  failed="")  # fmt: skip
    verdict = dict(question_id="q", control="", correct=None, score=None, answered=True,
                   failed="unreadable: no {")  # fmt: skip
    for name, line in (("answers.jsonl", answer), ("judged.exact.jsonl", verdict)):
        (folder / name).write_text(json.dumps(line) + "\n")
    text, html = page(tmp_path)
    assert "nothing was judged: no reply of the judge about any of the 40 answers" in text
    assert "| run | - | - | 40 | 0 | 40 | exact |" in text
    assert "failures" not in text and "image/png" not in html
    write(tmp_path, benchmark="own", failed={"unanswered": 0, "unjudged": 2}, answered=40)
    assert "2 of 40 verdicts failed" in page(tmp_path)[0]


def test_two_models_are_told_apart(tmp_path):
    write(tmp_path / "a", benchmark="own")
    write(tmp_path / "b", benchmark="own", split="test")
    text, _ = page(tmp_path / "a", tmp_path / "b")
    assert row(text, "run (1: a)") and row(text, "run (2: b)")
    assert "2 different splits (test; validation)" in text


def test_what_a_blind_model_solves_is_said(tmp_path):
    blind = {"n": 20, "accuracy": estimate(0.52, 0.4, 0.6), "own": {"accuracy": estimate(0.6, 0.5)}}
    write(tmp_path, controls={"blind": blind})
    assert "Solved as well by a blind model: 52.0" in page(tmp_path)[0]
    write(tmp_path)
    text, _ = page(tmp_path)
    assert "blind model" not in text and "12.5 %" in text
    zero = {"n": 20, "accuracy": estimate(0.0, 0.0, 0.0), "own": {"accuracy": estimate(0.0, 0.0)}}
    write(tmp_path, controls={"blind": zero})
    text, _ = page(tmp_path)
    assert "blind model" not in text and "the controls show nothing" in text
    write(tmp_path, controls={})
    assert "No controls were asked" in page(tmp_path)[0]
    criteria = dict(criteria={"CI": estimate(2.0), "TU": estimate(1.0)})
    own = dict(criteria={"CI": estimate(3.0, 2.5, 3.5), "TU": estimate(1.1, 0.9, 1.2)})
    assert solved_blind(criteria | {"own": own})
    own["criteria"]["TU"] = estimate(1.3, 1.1, 1.4)
    assert not solved_blind(criteria | {"own": own})


def test_overlap_and_silence_about_it_are_warned_of(tmp_path):
    folder = write(tmp_path)
    assert "zero-shot" not in page(tmp_path)[0]
    info = json.loads((folder / "info.json").read_text())
    told = "the training videos of this model are not known"
    for overlap in (None, {"known": False, "complete": False, "videos": None, "told": told}):
        (folder / "info.json").write_text(json.dumps(info | {"overlap": overlap}))
        text, html = page(tmp_path)
        assert f"{told}. This is not a zero-shot score" in text
        assert f"<p class=warn>run: {told}" in html
    seen = {"known": True, "complete": True, "videos": ["v"], "told": "1 of 9 videos"}
    (folder / "info.json").write_text(json.dumps(info | {"overlap": seen}))
    rest = {"videos_left_out": 1, "n": 33, "accuracy": estimate(0.4, 0.3, 0.5)}
    write_scores = json.loads((folder / "scores.exact.json").read_text())
    write_scores["without_training_videos"] = rest
    (folder / "scores.exact.json").write_text(json.dumps(write_scores))
    text, _ = page(tmp_path)
    assert "1 of 9 videos. This is not a zero-shot score" in text
    assert "| run | 1 | 33 | 40.0 [30.0, 50.0] | exact |" in text


def test_text_generation(tmp_path):
    criteria = {key: estimate(2 + n / 10, 2.0, 2.5) for n, key in enumerate(("CI", "DO", "CU"))}
    write(tmp_path, benchmark="video_text_generation", split="test", accuracy=None,
          criteria=criteria, mean_of_criteria=None, by_type={}, controls={})  # fmt: skip
    text, _ = page(tmp_path)
    assert "| 2.00 [2.00, 2.50] | 2.10 [2.00, 2.50] | 2.20 [2.00, 2.50] | - | - | - |" in text
    assert "3.55" in row(text, "ResNetVLLM") and "2.38" in row(text, "Video-ChatGPT")


def test_failures_are_shown_the_furthest_off_first(tmp_path):
    folder = write(tmp_path, benchmark="own")
    answers, verdicts = [], []
    for number, (video, correct, score) in enumerate(
        [("a", False, 2.0), ("a", False, 0.0), ("b", False, 1.0), ("c", True, 5.0)]
    ):
        id = f"q{number}"
        answers.append(dict(question_id=id, control="", video=video, question=f"Q{number}?",
                            truth="t", answer=f"A{number}|", failed=""))  # fmt: skip
        verdicts.append(dict(question_id=id, control="", correct=correct, score=score))
    for name, lines in (("answers.jsonl", answers), ("judged.exact.jsonl", verdicts)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = page(tmp_path)
    shown = [line for line in text.splitlines() if line.startswith("| question |")]
    assert shown == ["| question | Q1? |", "| question | Q2? |", "| question | Q0? |"]
    assert "| answer | A1\\| |" in text and "frames are no longer there" in text
    info = json.loads((folder / "info.json").read_text())
    info.pop("frames")  # as of predictions of another program
    (folder / "info.json").write_text(json.dumps(info))
    text, _ = page(tmp_path)
    assert "come without frames" in text and "no longer there" not in text


def faithful(overlap, hallucinated):
    found = dict(overlap=estimate(overlap, n=9), hallucinated=estimate(hallucinated, n=9))
    return {"faithfulness": found | {"below": 0.5, "without_facts": 3}}


def test_faithfulness_has_a_table_of_its_own_and_only_inventions_are_failures(tmp_path):
    write(tmp_path, benchmark="own")
    blind = {"blind": {"n": 20, **faithful(0.25, 0.75), "own": faithful(0.875, 0.125)}}
    folder = write(tmp_path, benchmark="own", judge="facts", controls=blind, **faithful(0.9, 0.1),
                   by_type={"what": faithful(0.4, 0.6)})  # fmt: skip
    path = folder / "scores.facts.json"
    scores = json.loads(path.read_text())
    del scores["accuracy"]
    path.write_text(json.dumps(scores))
    answers, verdicts = [], []
    for id, overlap in (("true", 1.0), ("half", 0.5), ("made_up", 0.25), ("stated_nothing", None)):
        answers.append(dict(question_id=id, control="", video=id, question="?", truth="t",
                            answer=id, failed=""))  # fmt: skip
        verdicts.append(dict(question_id=id, control="", correct=None, score=None, overlap=overlap,
                             failed="", answered=True))  # fmt: skip
    for name, lines in (("answers.jsonl", answers), ("judged.facts.jsonl", verdicts)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = page(tmp_path)
    assert "| run | 90.0 [no interval] | 10.0 [no interval] (below 50 %) | 3 | facts | v" in text
    assert len([line for line in text.splitlines() if line.startswith("| run | 62.1")]) == 1
    assert "different judges" not in text  # they are in no table together
    assert "where facts are counted it is among the hallucinated" in text
    own = "facts 87.5 [no interval]; hallucinated 12.5 [no interval]"
    assert (
        f"| blind | 20 | facts 25.0 [no interval]; hallucinated 75.0 [no interval] | {own}" in text
    )
    assert "| what | 9 | facts 40.0 [no interval]; hallucinated 60.0 [no interval] | - |" in text
    assert "facts, split validation: 1 failures" in text and "| answer | made_up |" in text
    assert "| facts in the reference | 25 % |" in text


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(split="test"), "is of the split 'test', the answers beside it are of 'validation'"),
        (dict(benchmark="msrvtt_qa"), "is of the benchmark 'msrvtt_qa'"),
        (dict(accuracy=estimate(float("nan"))), "nan, which is no score"),
        (dict(judge="exact"), "judge is 'exact', expected an object"),
        (dict(judge=None), "does not say which judge"),
    ],
)
def test_scores_that_do_not_fit_are_refused(change, match, tmp_path):
    folder = write(tmp_path)
    content = json.loads((folder / "scores.exact.json").read_text()) | change
    (folder / "scores.exact.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError, match=match):
        report([tmp_path])


def test_folders_without_answers_or_scores(tmp_path):
    with pytest.raises(EvaluationError, match="holds no BENCHMARK/info.json"):
        report([tmp_path])
    folder = write(tmp_path, benchmark="own")
    (folder / "scores.exact.json").unlink()
    with pytest.raises(EvaluationError, match="not judged yet; python -m rvllm_jax.judge"):
        report([tmp_path])
    write(tmp_path)
    with locked(tmp_path), pytest.raises(LockError, match="is being written by"):
        report([tmp_path])
    assert not (tmp_path / "report.md").exists()
    _, notes = report([tmp_path])
    lacking = next(note for note in notes if "own: not judged yet" in note)
    assert lacking in (tmp_path / "report.md").read_text()
