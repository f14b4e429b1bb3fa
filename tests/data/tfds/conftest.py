"""Annotation files as they are published, of any size, for the builders."""

import json
from pathlib import Path

import pytest


def number(count: int, videos: int) -> list[int]:
    """The video of each of `count` questions, spread over all `videos`."""
    return [position * videos // count for position in range(count)]


@pytest.fixture
def pair(tmp_path):
    """pair(stem, names, ids): Video-ChatGPT's two files of questions and answers."""

    def write(stem: str, names: list[str], ids: list[str]) -> Path:
        asked = [
            {"video_name": name, "question": f"what is it {i}?", "question_id": i}
            for name, i in zip(names, ids, strict=True)
        ]
        answers = [{"answer": f"a {i}", "type": "3", "question_id": i} for i in ids]
        (tmp_path / f"{stem}_q.json").write_text(json.dumps(asked))
        (tmp_path / f"{stem}_a.json").write_text(json.dumps(answers))
        return tmp_path

    return write


@pytest.fixture
def published(pair, tmp_path):
    """published(dataset, questions, videos): a split of that size in the dataset's own form."""

    def write(dataset: str, questions: int, videos: int) -> Path:
        of = number(questions, videos)
        if dataset == "activitynet_qa":
            names = [f"{video:011d}" for video in of]
            return pair("test", names, [f"v_{name}_{n}" for n, name in enumerate(names)])
        if dataset == "msvd_qa":
            names = [f"{video:011d}_1_9" for video in of]
            return pair("test", names, [f"{1201 + v}_{30_933 + n}" for n, v in enumerate(of)])
        if dataset == "msrvtt_qa":
            names = [f"video{6513 + video}" for video in of]
            return pair("test", names, [str(158_581 + n) for n in range(questions)])
        if dataset == "tgif_frameqa":
            rows = [f"tumblr_{v}\twhat ?\tcat\t0\tFRAMEQA{n}\t{n}\ta cat" for n, v in enumerate(of)]
            header = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription"
            table = "\n".join([header, *rows, ""])
            (tmp_path / "Test_frameqa_question.csv").write_text(table)
            return tmp_path
        kind = dataset.partition("/")[2]
        asked = ("Q1", "Q2") if kind == "consistency" else ("Q",)
        rows = [
            {"video_name": f"v_{v:011d}", **{key: f"{key} {n}?" for key in asked}, "A": "It is."}
            for n, v in enumerate(of)
        ]
        (tmp_path / f"{kind}_qa.json").write_text(json.dumps(rows))
        return tmp_path

    return write
