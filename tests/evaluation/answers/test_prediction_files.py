import json

from rvllm_jax.evaluation.answers.prediction_files import write_predictions


def answer(id, kind="", pair=""):
    return dict(question_id=id, video=f"v_{id}", question=f"q{id}", truth=f"t{id}", answer=f"a{id}",
                type=kind, pair=pair)  # fmt: skip


def test_zero_shot_questions(tmp_path):
    write_predictions(tmp_path, "msvd_qa", [answer("7"), answer("3")])
    assert json.loads((tmp_path / "predictions.json").read_text()) == [
        {"id": "7", "question": "q7", "answer": "t7", "pred": "a7"},
        {"id": "3", "question": "q3", "answer": "t3", "pred": "a3"},
    ]


def test_text_generation(tmp_path):
    answers = [
        answer("g", "generic"), answer("t", "temporal"), answer("c/2", "consistency", "c"),
        answer("c/1", "consistency", "c"),
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
