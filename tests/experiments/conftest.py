"""A small untrained model as a run, small videos as a prepared folder; and a model that is asked
about video files, its programs compiled once."""

import json

import jax
import numpy as np
import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve
from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.video import encode
from rvllm_jax.experiments import questions_file
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.questions_file import answer_file
from rvllm_jax.experiments.saved.open import describe_model
from rvllm_jax.generation.sampling import GenerationConfig, Sampling
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.stages import open_layout
from rvllm_jax.training.state import StatePlacement
from rvllm_jax.training.workdir import claim

VIDEOS = ("a", "b", "c", "v_abcdefghijk")
MESH = dict(data=1, fsdp=4, tensor=2)
QUESTIONS = {"a": 5, "b": 2, "c": 1, "v_abcdefghijk": 2}
ASKED = [
    {"video": "a.mp4", "question": "what moves?", "note": "é"},
    {"id": 7, "video": "c.mp4", "questions": ["which way?", "what is left?", "and up?"]},
    {"video": "a.mp4", "question": "which way does it go?"},
    {"video": "a.mp4", "question": "what moves?", "note": "é"},
]
CONFIG = GenerationConfig(Sampling(temperature=5.0), max_new=5, seed=11)


def write_run(joint, workdir, seed=0):
    """A working directory with a checkpoint of the tiny model, its decoder's matrices made large,
    so that its answers differ."""
    config = joint()
    config.evaluation.max_new = 6
    config.evaluation.batch = 8
    recipe = resolve(config)
    claim(workdir, config.to_dict())
    model = build_model(recipe)
    placement = StatePlacement(model, recipe.stages, recipe.model.dtype, open_layout(recipe, model))
    arrays = placement.draw(jax.random.key(seed))
    arrays["params"] = {
        path: x * 10 if path.startswith("decoder/") and path.endswith("kernel") else x
        for path, x in arrays["params"].items()
    }
    text = ["what moves where? the red one, number 1 2 3"] * 9
    tokenizers.train(text, recipe.tokenizer.vocab_size).save(workdir / "tokenizer")
    checkpoints = Checkpoints(workdir)
    checkpoints.save(3, arrays, {"position": {}})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="session")
def run_folder(joint, tmp_path_factory):
    return write_run(joint, tmp_path_factory.mktemp("run"))


def records(names=VIDEOS):
    """LLaVA's: every question an example of its own, types t0 and t1."""
    return [
        {
            "id": f"{name}_{number}",
            "video": f"{name}.mp4",
            "conversations": [
                {"from": "human", "value": f"what is at {number}?", "type": f"t{number % 2}"},
                {"from": "gpt", "value": f"{name} {number}"},
            ],
        }
        for name in names
        for number in range(QUESTIONS.get(name, 1))
    ]


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in VIDEOS:
        small = rng.integers(0, 256, (60, 5, 5, 3), dtype=np.uint8)
        encode.write(folder / f"{name}.mp4", small.repeat(8, 1).repeat(8, 2), fps=8)
    return folder


@pytest.fixture(scope="session")
def prepared(videos, tmp_path_factory):
    """An own prepared folder of 10 questions about 4 videos, and one whose video is missing."""
    folder = tmp_path_factory.mktemp("prepared")
    file = folder / "own.json"
    file.write_text(json.dumps(records((*VIDEOS, "gone"))))
    done = prepare(
        videos, [file], folder / "own", "test",
        PrepareOptions(
            stride=2, short_side=36, encoding="raw", interval=6, no_benchmark=True, max_bad=0.5,
            thumbnails=0,
        ),
        say=lambda line: None,
    )  # fmt: skip
    assert done.code == 0, done.verdict
    return folder


@pytest.fixture(scope="session")
def answerer(talker) -> Answerer:
    return Answerer(describe_model(talker, mesh=MESH))


@pytest.fixture
def ask(answerer, talker, tmp_path, monkeypatch):
    """ask(records, ...) -> (Tally, the lines of the output)."""
    monkeypatch.setattr(
        questions_file.Answerer,
        "load_videos",
        lambda self, paths: (load_or_say(self, path) for path in paths),
    )

    def ask(records, config=CONFIG, out="out.jsonl", **options):
        text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records)
        (tmp_path / "in.jsonl").write_text(text)
        where = tmp_path / "in.jsonl", tmp_path / out
        options = dict(videos=talker / "videos", batch=2) | options
        tally = answer_file(answerer, *where, config, **options)
        return tally, [json.loads(line) for line in where[1].read_text().splitlines()]

    return ask


def load_or_say(answerer, path):
    """As `load_videos` without a process, whose start takes seconds."""
    try:
        return answerer.load_video(path)
    except questions_file.VideoError as error:
        return error
