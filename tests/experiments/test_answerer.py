"""A loose file is answered as a prepared one, and what cannot be asked is refused first."""

import dataclasses
import json
import shutil
from collections import Counter

import jax
import numpy as np
import pytest

from rvllm_jax.config.check import ConfigError
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text.template import ChatTemplateError
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.experiments.answerer import Answerer
from rvllm_jax.experiments.saved.open import describe_model, read_arrays
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.grouping import Grouping
from rvllm_jax.generation.prompts import PromptError
from rvllm_jax.generation.sampling import GenerationConfig, Sampling
from rvllm_jax.types import Example, Turn
from tests.experiments.conftest import MESH

QUESTIONS = ["what moves?", "and which way does it go? up"]


@pytest.fixture(scope="module")
def prepared(talker, answerer, tmp_path_factory):
    """A dataset of the talker's videos, stored as its recipe says."""
    folder, recipe = tmp_path_factory.mktemp("store"), answerer.description.recipe
    data = recipe.data
    names = [f"{name}.mp4" for name in "abc"]
    write_store(folder, {name: talker / "videos" / name for name in names}, data.store_options)
    turns = tuple(Turn(question, "left") for question in QUESTIONS)
    return Dataset(
        [Example(name, name, turns, "left") for name in names],
        FrameStore(folder),
        answerer.description.tokenizer,
        answerer.description.template,
        dataclasses.replace(recipe.dataset_options, max_segments=2),
    )


def in_batches(opened, dataset):
    """The predictions of a model, as training's evaluation and `evaluate` ask."""
    config = GenerationConfig(max_new=12)
    parts = opened.module, opened.tokenizer, opened.template
    engine = Engine(*parts, config=config, devices=opened.layout)
    (predictions,) = engine.predict(Grouping(dataset, videos=4, together=2))
    return predictions


def test_a_session_about_a_file_says_what_batches_say_about_the_prepared_video(
    talker, answerer, prepared
):
    opened = read_arrays(answerer.description)
    predictions = in_batches(opened, prepared)
    asked = [prediction.text for prediction in predictions]
    said = []
    for clip, name in enumerate("abc"):
        seen = answerer.load_video(talker / "videos" / f"{name}.mp4")
        row = prepared.load(clip, (), None)
        np.testing.assert_array_equal(seen.frames, row.frames[None])
        np.testing.assert_array_equal(seen.mask, row.frame_mask[None])
        session = answerer.session(seen, name)
        said += session.answers(QUESTIONS, max_new=opened.recipe.evaluation.max_new)
    assert said == asked
    assert len(set(said)) >= 5  # they depend on the video and on the question


def test_each_stop_id_of_a_model_s_files_ends_answers(talker, answerer, prepared, tmp_path):
    """In a chat, and in the evaluation of benchmarks: the second of the list too."""
    session = answerer.session(answerer.load_video(talker / "videos" / "a.mp4"), "a")
    session.ask(QUESTIONS[0], max_new=12)
    said, eos_id = session.turns[0].ids, answerer.description.tokenizer.eos_id
    second = next(token for n, token in enumerate(said) if n and token not in said[:n])
    model = shutil.copytree(talker, tmp_path / "model")
    ids = json.dumps({"eos_token_id": [eos_id, second]})
    (model / "tokenizer" / "generation_config.json").write_text(ids)
    other = Answerer(describe_model(model, mesh=MESH))
    cut = other.session(other.load_video(talker / "videos" / "a.mp4"), "a")
    cut.ask(QUESTIONS[0], max_new=12)
    assert cut.turns[0].ids == said[: said.index(second)]
    answers = in_batches(read_arrays(other.description), prepared)
    assert len(answers) == 6 and answers[0].ids == cut.turns[0].ids
    assert not any(second in one.ids for one in answers)


def test_views_that_vote_answer_apart_and_the_commonest_counts(talker, answerer):
    """A later turn has the answer that counted in its prompt, whatever a view itself had said."""
    voting = Answerer(answerer.description, clips="5x5", fusion="vote")
    seen = voting.load_video(talker / "videos" / "a.mp4")
    few = [seen.frames[:3], seen.mask[:3], [1, 2, 2]]
    session = voting.engine.session(*few)
    options = dict(max_new=4, sampling=Sampling(temperature=3.0), seed=3)
    ids = []
    for question in QUESTIONS:
        votes = Counter()
        for frames, mask, count in zip(*few, strict=True):
            alone = voting.engine.session(frames, mask)
            alone.turns = list(session.turns)
            votes[alone.ask(question, **options)] += count
        assert len(votes) > 1
        assert session.ask(question, **options) == max(votes, key=votes.__getitem__)
        ids.append(session.turns[-1].ids)
    session.reset()
    first, _ = session.predict(QUESTIONS, seeds=[3, 4], **options)
    assert first.ids == ids[0] and session.turns == []
    with pytest.raises(PromptError, match="3 views vote on cannot be shown while it is written"):
        session.stream(QUESTIONS[0])


def test_the_cache_and_the_parameters_are_split_over_the_devices(talker, answerer):
    session = answerer.session(answerer.load_video(talker / "videos" / "a.mp4"), "a")
    session.ask(QUESTIONS[0], max_new=3)
    for cache in (session._prefix, session._cache):
        k = cache.k[0]
        assert k.addressable_shards[0].data.size * 2 == k.size
    kernels = [x for x in jax.tree.leaves(answerer.engine._arrays) if x.shape == (16, 24)]
    assert kernels and all(x.addressable_shards[0].data.size * 8 == x.size for x in kernels)


def test_what_cannot_be_asked_is_refused_before_the_model_is_read(talker, monkeypatch):
    told = []
    waiting = Answerer(describe_model(talker), say=told.append)
    seen = waiting.load_video(talker / "videos" / "a.mp4")
    for question, message in (
        (" \n", "the question is empty"),
        ("left " * 5000, "the context is 4096"),
        ("what \udcff?", "is not UTF-8"),
    ):
        with pytest.raises(PromptError, match=message):
            waiting.check(seen, question)
    waiting.check(seen, "what moves?")
    with pytest.raises(VideoError, match="absent.mp4: is not there"):
        waiting.load_video(talker / "absent.mp4")
    assert "engine" not in vars(waiting) and not told
    with pytest.raises(ChatTemplateError, match="needs the special tokens"):
        describe_model(talker, template="chatml")
    with pytest.raises(ChatTemplateError, match="has no chat_template"):
        describe_model(talker, template="folder")
    with pytest.raises(ConfigError, match="data.template='odd'"):
        describe_model(talker, template="odd")


def test_another_template_asks_otherwise(talker, answerer):
    description = describe_model(talker, template="vicuna_v1")
    seen = answerer.load_video(talker / "videos" / "a.mp4")
    sizes = []
    for one in (answerer.description, description):
        with pytest.raises(PromptError) as error:
            Answerer(one).check(seen, "left " * 5000)
        sizes.append(str(error.value))
    assert description.template != answerer.description.template and sizes[0] != sizes[1]


@pytest.mark.parametrize("wrong", [{"max_new": 0}, {"stop": ("a", "")}])
def test_bad_values_are_refused(wrong):
    with pytest.raises(ValueError, match="max_new=0|stop string is empty"):
        dataclasses.replace(GenerationConfig(), **wrong)
