"""A small sample of every format, as the datasets' own files have it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

QUESTIONS = [
    {"video_name": "clip", "question": "who runs ?", "question_id": "q1"},
    {"video_name": "clip", "question": "where ?", "question_id": "q2"},
]
ANSWERS = [
    {"answer": "outside", "type": 3, "question_id": "q2"},
    {"answer": "a man", "type": "0", "question_id": "q1"},
]
ACTIVITYNET = (
    [
        {"video_name": "1QIUV7WYKXg", "question": "is it", "question_id": "v_1QIUV7WYKXg_3"},
        {"video_name": "9eniCub7u60", "question": "who", "question_id": "v_9eniCub7u60_2"},
    ],
    [
        {"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_3"},
        {"answer": "a girl", "type": 8, "question_id": "v_9eniCub7u60_2"},
    ],
)
MSVD = [
    {"answer": "someone", "id": 30933, "question": "who pours?", "video_id": 1201},
    {"answer": "chew", "id": 0, "question": "what does an animal do?", "video_id": 1},
]
MSRVTT = [
    {"answer": "couch", "category_id": 14, "id": 158581, "question": "on what?", "video_id": 6513},
    {"answer": "sing", "category_id": 0, "id": 1, "question": "what is done?", "video_id": 0},
]
MAPPING = "-4wsuPCjDBc_5_15 vid1\nbQJQGoJF7_k_162_169 vid1201\n"
TGIF = (
    "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\n"
    'tumblr_no73_250\t"stop says which ?\tsign\t0\tFRAMEQA1159\t27138\ta sign says " stop .\n'
    "tumblr_nedt_250\thow many ?\ttwo\t1\tFRAMEQA9405\t2853\ttwo men walk .\n"
)
LLAVA = [
    {
        "id": 7,
        "video": ["dir/a.mp4"],
        "data_source": "own",
        "conversations": [
            {"from": "human", "value": "What?\n<image>"},
            {"from": "gpt", "value": "It."},
            {"from": "human", "value": "Who?"},
            {"from": "gpt", "value": "I."},
        ],
    },
]
SAMPLES: dict[str, dict[str, object]] = {
    "llava": {"mixed.json": LLAVA},
    "video_instruct": {"vi.json": [{"q": "What?", "a": "It.", "video_id": "v_k_ZXmr8pmrs"}] * 2},
    "zero_shot": {"test_q.json": QUESTIONS, "test_a.json": ANSWERS},
    "activitynet": dict(zip(("test_q.json", "test_a.json"), ACTIVITYNET, strict=True)),
    "generative": {"temporal_qa.json": [{"video_name": "v_p1QGn0IzfW0", "Q": "Then?", "A": "He."}]},
    "consistency": {
        "consistency_qa.json": [{"video_name": "v_UZm05CvtxkA", "Q1": "A?", "Q2": "B?", "A": "C."}]
    },
    "msvd_msrvtt_original": {"val_qa.json": MSVD, "youtube_mapping.txt": MAPPING},
    "tgif": {"Test_frameqa_question.csv": TGIF},
}


@pytest.fixture
def write(tmp_path) -> Callable[..., list[Path]]:
    """write({name: content}) -> the paths; what is no text or bytes is written as JSON."""

    def write(files: dict[str, object]) -> list[Path]:
        paths = []
        for name, content in files.items():
            if not isinstance(content, str | bytes):
                content = json.dumps(content)
            path = tmp_path / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            paths.append(path)
        return paths

    return write


@pytest.fixture
def samples() -> dict[str, dict[str, object]]:
    """Format -> its files by name."""
    return {format: dict(files) for format, files in SAMPLES.items()}


@pytest.fixture
def msrvtt() -> list[dict]:
    """Rows of MSRVTT-QA's own file."""
    return [dict(row) for row in MSRVTT]
