import json
import threading

import pytest

from rvllm_jax.evaluation.answers.answer_file import AnswersError
from rvllm_jax.evaluation.judge import judges
from rvllm_jax.evaluation.judge.chat import ChatJudge
from rvllm_jax.evaluation.judge.endpoint import Patience
from rvllm_jax.evaluation.judge.facts import FactJudge
from rvllm_jax.evaluation.judge.prompts import PromptsError, load_prompts
from rvllm_jax.evaluation.judge.verdicts import VerdictsError
from rvllm_jax.evaluation.judging import benchmark_folders, judge_benchmark
from rvllm_jax.evaluation.score.scores import Scoring
from rvllm_jax.evaluation.score.text import score_lines

SCORING = Scoring(resamples=20)
PRIOR = {"how": "the commonest", "accuracy": {"all": 0.5}}


def chat(server, **options):
    return judges.endpoint_judge(
        server.url, "judge", load_prompts(None), key_env="", parameters={},
        patience=Patience(5.0, 3, 0.001, 0.01), stop=threading.Event(), **options,
    )  # fmt: skip


def lines(folder, name):
    return [json.loads(row) for row in (folder / f"judged.{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def generation(folder):
    """Three questions of text generation, one of them with two wordings."""
    rows = [
        dict(question_id="g", criteria=["CI", "DO", "CU"], truth="A dog.", answer="A red dog."),
        dict(question_id="t", criteria=["TU"], video="v1", answer="", failed="no video"),
    ] + [
        dict(question_id=f"c{n}", criteria=["C"], pair="c", video="v2", truth="A cat.",
             answer=f"Said to {n}.")
        for n in (1, 2)
    ]  # fmt: skip
    return folder(rows, "video_text_generation", questions=4)


def test_five_criteria_and_consistency_in_one_request(generation, serve):
    server = serve()
    result, done = judge_benchmark(generation, chat(server), SCORING)
    assert done.judged == 5 and set(result["criteria"]) == {"CI", "DO", "CU", "TU", "C"}
    assert result["criteria"]["TU"]["value"] == 0 and result["failed"]["unanswered"] == 1
    asked = [request["messages"][1]["content"] for _, request in server.bodies]
    both = [text for text in asked if "Said to 1." in text and "Said to 2." in text]
    assert len(asked) == 4 and len(both) == 1
    values = [estimate["value"] for estimate in result["criteria"].values()]
    assert result["mean_of_criteria"] == pytest.approx(sum(values) / 5)
    assert "accuracy" not in result and "prior" not in result
    assert any("mean of the five" in line for line in score_lines(result))


def test_faithfulness_by_a_judge_and_by_rules(generation, serve):
    result, _ = judge_benchmark(generation, chat(serve(), faithfulness=True), SCORING)
    assert result["faithfulness"]["overlap"]["value"] == pytest.approx(3 * 0.25 / 4)
    assert result["faithfulness"]["hallucinated"]["value"] == 1.0
    by_rules, _ = judge_benchmark(generation, FactJudge(), SCORING)
    assert by_rules["faithfulness"]["overlap"]["value"] == pytest.approx(0.5 / 4)
    (dog,) = [row for row in lines(generation, "facts") if row["question_id"] == "g"]
    assert dog["overlap"] == 0.5 and dog["facts"]["unsupported"]["colours"] == ["red"]
    assert any("hallucinated (below 50 %)" in line for line in score_lines(by_rules))


def test_exact_has_nothing_to_judge_of_text_generation(generation):
    result, done = judge_benchmark(generation, judges.ExactJudge(), SCORING)
    assert result is None and (done.judged, done.before, done.left) == (0, 0, [])
    assert not list(generation.glob("judged.*"))


def test_exact_end_to_end(folder):
    rows = [
        dict(question_id="a", type="3", truth="yes", answer="Yes."),
        dict(question_id="b", type="3", truth="no", answer="no", video="v1"),
        dict(question_id="c", type="7", truth="2", answer="two", video="v2"),
        dict(question_id="d", type="7", truth="1", answer="", failed="unreadable", video="v3"),
        dict(question_id="a", type="3", truth="yes", answer="no", control="blind"),
    ]
    place = folder(rows, "activitynet_qa", questions=4, prior=PRIOR)
    result, _ = judge_benchmark(place, judges.ExactJudge(), SCORING)
    assert result["accuracy"]["value"] == 1 / 4 and result["judge"]["parameters"] == {
        "rule": "official"
    }
    assert result["rules"]["normalised"]["value"] == 3 / 4
    assert result["prior"] == PRIOR and result["by_type"]["number"]["types"] == ["7"]
    assert result["controls"]["blind"]["own"]["rules"]["normalised"]["value"] == 1.0
    by_other, _ = judge_benchmark(place, judges.ExactJudge("normalised"), SCORING)
    assert by_other["accuracy"]["value"] == 3 / 4
    assert json.loads((place / "scores.exact.json").read_text()) == result
    assert (place / "scores.exact.normalised.json").is_file()
    text = "\n".join(score_lines(result))
    assert "activitynet_qa test, judged by exact (official rule): 4 questions" in text
    assert "without a model, the commonest: 50.0 %" in text
    assert "1 unanswered" in text and "on these videos: unknown" in text


def test_integer_scores_and_costs_need_no_second_judging(many, serve):
    server, folder = serve(), many(10)
    result, _ = judge_benchmark(folder, chat(server), SCORING)
    cut, done = judge_benchmark(
        folder, chat(server), Scoring(integer=True, resamples=20, price_in=2.0, price_out=4.0)
    )
    assert done.judged == 0 and sum(server.asked.values()) == 10
    scores = [row["score"] for row in lines(folder, "judge")]
    assert result["score"]["value"] == pytest.approx(sum(scores) / 10)
    assert cut["score"]["value"] == sum(map(int, scores)) / 10 < result["score"]["value"]
    assert cut["cost"] == pytest.approx((10 * 100 * 2 + 10 * 10 * 4) / 1e6)


def test_an_answers_file_that_is_wrong_is_refused_before_anything_is_judged(many, serve):
    server, folder = serve(), many(4)
    with open(folder / "answers.jsonl", "a") as file:
        file.write((folder / "answers.jsonl").read_text().splitlines()[2] + "\n")
    with pytest.raises(AnswersError, match="come twice: q2"):
        judge_benchmark(folder, chat(server), SCORING)
    assert not server.asked and not list(folder.glob("judged.*"))


def test_prompts_that_lack_one_are_refused_before_anything_is_judged(generation, tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('{"CI": {"user": "Item: {id} {answer} {prediction}"}}')
    by = ChatJudge(None, "judge", load_prompts(path), backend="openai", parameters={})
    with pytest.raises(PromptsError, match="none called 'DO'"):
        judge_benchmark(generation, by, SCORING)
    assert not list(generation.glob("judged.*"))


def test_folders(folder):
    rows = [dict(question_id="a")]
    one, two = folder(rows, "msvd_qa"), folder(rows, "tgif_frameqa")
    assert benchmark_folders(one.parent, []) == [one, two]
    assert benchmark_folders(one.parent, ["tgif_frameqa"]) == [two]
    assert benchmark_folders(one, []) == [one]
    with pytest.raises(VerdictsError, match=r"of msrvtt_qa .*\(there are msvd_qa, tgif_frameqa\)"):
        benchmark_folders(one.parent, ["msvd_qa", "msrvtt_qa"])
    with pytest.raises(VerdictsError, match="any benchmark"):
        benchmark_folders(one.parent / "absent", [])


def test_an_unfinished_evaluation_is_not_judged(many):
    folder = many(5)
    info = json.loads((folder / "info.json").read_text()) | {"questions": 8}
    (folder / "info.json").write_text(json.dumps(info))
    with pytest.raises(AnswersError, match="has 5 answers.*8 questions"):
        judge_benchmark(folder, judges.ExactJudge(), SCORING)


def test_controls_that_were_not_finished_are_not_judged_in_silence(many):
    whole = many(20, complete=True)
    judge_benchmark(whole, judges.ExactJudge(), SCORING)
    with pytest.raises(AnswersError, match="controls are missing. Continue it"):
        judge_benchmark(many(20, out="other", complete=False), judges.ExactJudge(), SCORING)


def test_a_half_written_answer_is_not_left_out_in_silence(many):
    folder = many(5)
    path = folder / "answers.jsonl"
    path.write_bytes(path.read_bytes() + b'{"question_id": "q5", "control": "bli')
    with pytest.raises(AnswersError, match="last line is not written to its end"):
        judge_benchmark(folder, judges.ExactJudge(), SCORING)
