"""Answers in the forms that Video-ChatGPT's own scripts read and write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.questions import TEXT_GENERATION
from rvllm_jax.system.atomic import dump_json, write_text


def write_predictions(folder: Path, benchmark: str, answers: Sequence[Mapping[str, Any]]) -> None:
    """Writes predictions.json, or of text generation predictions_{generic,temporal,consistency}.

    answers: the lines of answers.jsonl without controls, all of them. Records are `{"id",
    "question", "answer", "pred"}`; of text generation `{"video_name", "Q", "A", "pred"}` and, for
    consistency, `{"video_name", "Q1", "Q2", "A", "pred1", "pred2"}`.
    """
    if benchmark != TEXT_GENERATION:
        _write(folder / "predictions.json", [_zero_shot(answer) for answer in answers])
        return
    for kind in ("generic", "temporal"):
        own = [_generative(answer) for answer in answers if answer["type"] == kind]
        _write(folder / f"predictions_{kind}.json", own)
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        if answer["pair"]:
            pairs.setdefault(answer["pair"], []).append(answer)
    own = [_consistency(*sorted(pair, key=lambda a: a["question_id"])) for pair in pairs.values()]
    _write(folder / "predictions_consistency.json", own)


def _zero_shot(answer: Mapping[str, Any]) -> dict[str, str]:
    return {
        "id": answer["question_id"],
        "question": answer["question"],
        "answer": answer["truth"],
        "pred": answer["answer"],
    }


def _generative(answer: Mapping[str, Any]) -> dict[str, str]:
    return {
        "video_name": answer["video"],
        "Q": answer["question"],
        "A": answer["truth"],
        "pred": answer["answer"],
    }


def _consistency(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    return {
        "video_name": first["video"],
        "Q1": first["question"],
        "Q2": second["question"],
        "A": first["truth"],
        "pred1": first["answer"],
        "pred2": second["answer"],
    }


def _write(path: Path, records: list) -> None:
    write_text(path, dump_json(records, ensure_ascii=False), errors="replace")
