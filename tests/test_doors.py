"""One engine: whichever way a model is asked, the same question gets the same ids."""

import dataclasses
import json

import numpy as np
import pytest

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.source import TrainingData
from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.evaluation.answers.answer_file import AnswerFile
from rvllm_jax.evaluation.benchmarks import open_benchmark
from rvllm_jax.evaluation.judge.local import LocalJudge
from rvllm_jax.experiments import questions_file
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.ask import predict
from rvllm_jax.experiments.benchmark_run import EvaluationOptions
from rvllm_jax.experiments.evaluate import evaluate
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.questions_file import answer_file
from rvllm_jax.experiments.saved.open import describe_model, open_model
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.grouping import Grouping
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.types import Example, Turn

QUESTIONS = ("what moves?", "and which way does it go? up")
VIDEOS = ("a.mp4", "b.mp4", "c.mp4")
MAX_NEW = 12  # as the talker's recipe says
WAYS = [("1x1", "lock_step"), ("25x1", "lock_step"), ("25x1", "vote")]


@pytest.fixture(scope="module")
def prepared(talker, tmp_path_factory):
    """A folder of `prepare`: the questions about each of the talker's videos."""
    folder = tmp_path_factory.mktemp("prepared")
    turns = [
        turn
        for question in QUESTIONS
        for turn in ({"from": "human", "value": question}, {"from": "gpt", "value": "left"})
    ]
    records = [{"id": name, "video": name, "conversations": turns} for name in VIDEOS]
    (folder / "own.json").write_text(json.dumps(records))
    done = prepare(
        talker / "videos", [folder / "own.json"], folder / "own", "test",
        PrepareOptions(
            stride=2, short_side=36, encoding="raw", interval=6, no_benchmark=True, thumbnails=0
        ),
        say=lambda line: None,
    )  # fmt: skip
    assert done.code == 0, done.verdict
    return folder


@pytest.fixture(scope="module")
def opened(talker):
    return open_model(talker)


def in_a_run(opened, prepared, clips, fusion, *, probe=False):
    """As the evaluation at the end of a run asks, or the probe beside a validation loss."""
    benchmark = open_benchmark("own", prepared)
    evaluation = dataclasses.replace(opened.recipe.evaluation, test_clips=clips, fusion=fusion)
    recipe = dataclasses.replace(opened.recipe, evaluation=evaluation)
    data = TrainingData({"test": benchmark.examples}, benchmark.store, {}, {})
    parts = data, opened.tokenizer, opened.model, opened.layout
    experiment = Experiment(recipe, opened.path, *parts)
    dataset = experiment.dataset(benchmark.examples)
    engine = experiment.engine().with_model(opened.module)
    return [p.ids for p in predict(engine, experiment.grouping(dataset, centred=probe))]


def by_evaluate(talker, prepared, out, clips, fusion):
    options = EvaluationOptions(clips=clips, fusion=fusion, controls=0)
    evaluate(["own"], str(prepared), str(talker), out, options)
    info = json.loads((out / "own" / "info.json").read_text())
    assert info["fusion"] == (fusion if clips != "1x1" else "") and info["clips"] == clips
    ids = {answer["question_id"]: answer["ids"] for answer in AnswerFile.read(out / "own")}
    return [ids[f"{name}/{n}"] for name in VIDEOS for n in range(1, len(QUESTIONS) + 1)]


def by_chat(answerer, talker):
    """Each question the first turn of a conversation."""
    ids = []
    for name in VIDEOS:
        session = answerer.session(answerer.load_video(talker / "videos" / name), name)
        for question in QUESTIONS:
            session.reset()
            session.ask(question, max_new=MAX_NEW)
            ids.append(session.turns[0].ids)
    return ids


def by_a_file(answerer, talker, folder, monkeypatch):
    """The texts: a file of answers has no ids."""
    monkeypatch.setattr(
        questions_file.Answerer, "load_videos", lambda self, paths: map(self.load_video, paths)
    )
    lines = [json.dumps({"video": name, "questions": QUESTIONS}) for name in VIDEOS]
    (folder / "in.jsonl").write_text("\n".join(lines))
    config = GenerationConfig(max_new=MAX_NEW)
    options = dict(videos=talker / "videos")
    answer_file(answerer, folder / "in.jsonl", folder / "out.jsonl", config, **options)
    answers = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    settings = json.loads((folder / "out.jsonl.settings.json").read_text())
    assert settings["fusion"] == answerer.fusion
    return [text for answer in answers for text in answer["answers"]]


@pytest.mark.parametrize(("clips", "fusion"), WAYS)
def test_all_ways_of_asking_give_the_same_ids(
    clips, fusion, talker, opened, prepared, tmp_path, monkeypatch
):
    ids = in_a_run(opened, prepared, clips, fusion)
    assert len({tuple(each) for each in ids}) == len(VIDEOS) * len(QUESTIONS)
    if clips == "1x1":
        assert in_a_run(opened, prepared, clips, fusion, probe=True) == ids
    assert by_evaluate(talker, prepared, tmp_path / "out", clips, fusion) == ids
    answerer = Answerer(describe_model(talker), clips=clips, fusion=fusion)
    assert by_chat(answerer, talker) == ids
    texts = [opened.tokenizer.decode(each).strip() for each in ids]
    assert by_a_file(answerer, talker, tmp_path, monkeypatch) == texts


def test_the_ways_differ_where_views_do(opened, prepared):
    """Else equal ids would say nothing about which way was taken."""
    one, joint, vote = (in_a_run(opened, prepared, *way) for way in WAYS)
    assert one != joint and joint != vote


def test_the_local_judge_reads_text_as_a_caption_s_place_without_a_video(opened):
    """It has no video: as a batch whose caption is empty."""
    options = dataclasses.replace(opened.recipe.dataset_options, input="caption_in_slot")
    turns = tuple(Turn(question, "left") for question in QUESTIONS)
    parts = opened.tokenizer, opened.template
    dataset = Dataset([Example("text", "", turns, "")], None, *parts, options)
    config = GenerationConfig(max_new=MAX_NEW)
    engine = Engine(opened.module, *parts, config=config, devices=opened.layout)
    (batch,) = engine.predict(Grouping(dataset, videos=8, together=2, centred=True))
    judge = LocalJudge(Engine(unroll(opened.module), *parts), "talker", MAX_NEW)
    replies = [judge([{"role": "user", "content": q}]).text for q in QUESTIONS]
    assert replies == [prediction.text for prediction in batch] and all(replies)
    session = engine.session(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, bool))
    assert [p.ids for p in session.predict(QUESTIONS)] == [p.ids for p in batch]
