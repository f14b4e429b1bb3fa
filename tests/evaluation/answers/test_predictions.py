import json

import pytest

from rvllm_jax.evaluation.answers.answer_file import AnswersError, check_answers, read_answers
from rvllm_jax.evaluation.answers.predictions import import_predictions, write_predictions

QUESTIONS = [
    {"video_name": "abcdefghijk", "question": "is it red", "question_id": "v_abcdefghijk_1"},
    {"video_name": "abcdefghijk", "question": "how many", "question_id": "v_abcdefghijk_2"},
    {"video_name": "lmnopqrstuv", "question": "is it red", "question_id": "v_lmnopqrstuv_1"},
]
ANSWERS = [
    {"question_id": q["question_id"], "answer": a, "type": t}
    for q, a, t in zip(QUESTIONS, ("yes", "2", "no"), (3, 7, 3), strict=True)
]


@pytest.fixture
def take(tmp_path):
    """take(predictions, *annotations, ...) -> the folder, or raises."""

    def take(predictions, *annotations, names=("test_q.json", "test_a.json"), **options):
        annotations = annotations or (QUESTIONS, ANSWERS)
        paths = []
        for name, content in zip(("p.json", *names), (predictions, *annotations), strict=False):
            paths.append(tmp_path / name)
            paths[-1].write_text(json.dumps(content))
        given = dict(split="test") | options
        return import_predictions([paths[0]], paths[1:], tmp_path / "out", **given)

    return take


def answers(folder):
    check_answers(folder / "answers.jsonl")
    return {a.question_id: a for a in read_answers(folder / "answers.jsonl")}


def info(folder):
    return json.loads((folder / "info.json").read_text())


def predicted(rows=QUESTIONS):
    return [
        {"id": q["question_id"], "question": q["question"], "answer": a["answer"], "pred": f"P{n}"}
        for n, (q, a) in enumerate(zip(rows, ANSWERS, strict=False))
    ]


def test_every_question_becomes_an_answer_whatever_the_order_and_number(take):
    folder = take(predicted()[::-1][:2])
    found = answers(folder)
    assert [a.answer for a in found.values()] == ["", "P1", "P2"]
    assert found["v_abcdefghijk_1"].failed == "no prediction in p.json"
    assert (found["v_lmnopqrstuv_1"].truth, found["v_lmnopqrstuv_1"].type) == ("no", "3")
    told = info(folder)
    assert (told["benchmark"], told["split"], told["missing"]) == ("activitynet_qa", "test", 1)
    assert told["partial"] and told["published"] == 8000 and told["questions"] == 3


def test_the_form_of_the_official_evaluator_and_its_figures(take):
    rows = [{"question_id": a["question_id"], "answer": a["answer"]} for a in ANSWERS]
    rows[1]["answer"] = "3"
    folder = take([rows[2], rows[2], *rows[:2]], duplicates=True)
    assert [a.answer for a in answers(folder).values()] == ["yes", "3", "no"]
    told = info(folder)
    assert told["duplicates"] == ["v_lmnopqrstuv_1"]
    official = told["official_evaluator"]
    shares = {"all": 1.0, "yes/no": 1.5, "number": 0.0, "free": 1.0}
    assert official["accuracy"] == shares  # one is counted twice


def test_several_predictions_for_one_question(take):
    twice = [*predicted(), predicted()[1] | {"pred": "later"}]
    with pytest.raises(AnswersError, match="1 questions have several.*v_abcdefghijk_2"):
        take(twice)
    assert answers(take(twice, duplicates=True))["v_abcdefghijk_2"].answer == "P1"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"id": "v_zzzzzzzzzzz_1"}, "1 predictions are about no question.*another benchmark or"),
        ({"question": "is it blue"}, "1 ids stand for another question or truth"),
        ({"answer": "no"}, "1 ids stand for another question or truth"),
        ({"pred": None}, "record 0: expected texts, got None"),
        ({"pred": ["x"]}, "record 0: expected texts"),
    ],
)
def test_predictions_of_something_else(take, tmp_path, change, told):
    rows = predicted()
    rows[0] |= change
    with pytest.raises(AnswersError, match=told):
        take(rows)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", [{"pred": "x"}, {"id": "x"}, "x", {"video_name": "v", "Q": "q"}])
def test_rows_of_no_known_form(take, row):
    with pytest.raises(AnswersError, match="record 0: (has|expected an object)"):
        take([row])


def test_other_answers_are_not_written_over(take):
    take(predicted())
    assert take(predicted())
    with pytest.raises(AnswersError, match="holds other answers"):
        take(predicted()[:1])


def test_splits(take):
    with pytest.raises(AnswersError, match="say by --split"):
        take(predicted(), split="")
    names = {"video_name": "aaaaaaaaaaa_1_2", "question": "who?", "question_id": "1201_30933"}
    truth = {"question_id": "1201_30933", "answer": "man", "type": "0"}
    said = [{"id": "1201_30933", "question": "who?", "answer": "man", "pred": "boy"}]
    folder = take(said, [names], [truth], split="")
    assert (info(folder)["benchmark"], info(folder)["split"]) == ("msvd_qa", "validation")
    with pytest.raises(AnswersError, match="split validation, and --split=test was given"):
        take(said, [names], [truth], split="test")
    with pytest.raises(AnswersError, match="--split=val: expected validation"):
        take(said, [names], [truth], split="val")


def test_a_whole_split_is_not_taken_as_another(take, tmp_path):
    """ActivityNet-QA's questions are not numbered: their count shows the split, as in `prepare`."""
    names = [f"{n // 10:011}" for n in range(18_000)]
    rows = [
        {"video_name": name, "question": "is it red", "question_id": f"v_{name}_{n}"}
        for n, name in enumerate(names)
    ]
    truths = [{"question_id": q["question_id"], "answer": "yes", "type": 3} for q in rows]
    said = [{"id": rows[0]["question_id"], "question": "is it red", "answer": "yes", "pred": "no"}]
    names = ("mine_q.json", "mine_a.json")
    with pytest.raises(AnswersError, match="18,000 rows are those of activitynet_qa's split valid"):
        take(said, rows, truths, names=names, split="test")
    assert not (tmp_path / "out").exists()
    assert info(take(said, rows, truths, names=names, split="validation"))["published"] == 18_000
    assert info(take(said, rows, truths, names=names, no_benchmark=True))["benchmark"] == "own"
    with pytest.raises(AnswersError, match="file's name is that of activitynet_qa's split valid"):
        take(predicted(), QUESTIONS, ANSWERS, names=("val_q.json", "val_a.json"), split="test")


def test_predictions_that_were_renamed_are_the_same(take, tmp_path):
    folder = take(predicted()[:2])
    before = (folder / "answers.jsonl").read_bytes()
    (tmp_path / "p.json").rename(tmp_path / "renamed.json")
    files = [tmp_path / "test_q.json", tmp_path / "test_a.json"]
    import_predictions([tmp_path / "renamed.json"], files, tmp_path / "out", split="test")
    assert (folder / "answers.jsonl").read_bytes() == before


def test_text_generation(take):
    video = "v_abcdefghijk"
    rows = [{"video_name": video, "Q": "Who?", "A": "A cat."}] * 2
    rows.append({"video_name": video, "Q": "Where?", "A": "Home."})
    said = [row | {"pred": f"P{n}"} for n, row in enumerate(rows)]
    folder = take(said, rows, names=("generic_qa.json",))
    found = list(answers(folder).values())
    assert [a.answer for a in found] == ["P0", "P1", "P2"]  # asked twice, answered in order
    assert {a.criteria for a in found} == {("CI", "DO", "CU")} and found[0].type == "generic"
    assert "official_evaluator" not in info(folder)


def test_consistency(take):
    rows = [{"video_name": "v_abcdefghijk", "Q1": "Who?", "Q2": "Which?", "A": "A cat."}]
    said = [rows[0] | {"pred1": "one", "pred2": "two"}]
    folder = take(said, rows, names=("consistency_qa.json",))
    first, second = answers(folder).values()
    assert (first.question, first.answer) == ("Who?", "one")
    assert (second.question, second.answer) == ("Which?", "two")
    assert (first.question_id, second.question_id) == (first.pair + "/1", second.pair + "/2")
    assert first.pair == second.pair and first.criteria == second.criteria == ("C",)


def written(id, kind="", pair=""):
    return dict(question_id=id, video=f"v_{id}", question=f"q{id}", truth=f"t{id}", answer=f"a{id}",
                type=kind, pair=pair)  # fmt: skip


def test_zero_shot_questions_in_others_form(tmp_path):
    write_predictions(tmp_path, "msvd_qa", [written("7"), written("3")])
    assert json.loads((tmp_path / "predictions.json").read_text()) == [
        {"id": "7", "question": "q7", "answer": "t7", "pred": "a7"},
        {"id": "3", "question": "q3", "answer": "t3", "pred": "a3"},
    ]


def test_text_generation_in_others_form(tmp_path):
    answers = [
        written("g", "generic"), written("t", "temporal"), written("c/2", "consistency", "c"),
        written("c/1", "consistency", "c"),
    ]  # fmt: skip
    write_predictions(tmp_path, "video_text_generation", answers)
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert files == {
        "predictions_generic.json": [{"video_name": "v_g", "Q": "qg", "A": "tg", "pred": "ag"}],
        "predictions_temporal.json": [{"video_name": "v_t", "Q": "qt", "A": "tt", "pred": "at"}],
        "predictions_consistency.json": [
            {"video_name": "v_c/1", "Q1": "qc/1", "Q2": "qc/2", "A": "tc/1", "pred1": "ac/1",
             "pred2": "ac/2"},
        ],
    }  # fmt: skip
