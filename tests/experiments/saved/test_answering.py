"""A loose file is answered as a prepared one, and what cannot be asked is refused first."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from rvllm_jax.config.check import ConfigError
from rvllm_jax.data.annotations.example import Example, Turn
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text.prompt import stop_ids
from rvllm_jax.data.text.template import ChatError
from rvllm_jax.data.video.container import VideoError
from rvllm_jax.evaluation.answering import Answering
from rvllm_jax.evaluation.asked_groups import plan
from rvllm_jax.evaluation.asking import Asker
from rvllm_jax.experiments.benchmark_run import _machine
from rvllm_jax.experiments.saved.answering import Answerer, How
from rvllm_jax.experiments.saved.open import describe_model, read_arrays
from rvllm_jax.generation.prompts import PromptError
from tests.experiments.conftest import MESH

QUESTIONS = ["what moves?", "and which way does it go? up"]


@pytest.fixture(scope="module")
def prepared(talker, answerer, tmp_path_factory):
    """A dataset of the talker's videos, stored as its recipe says."""
    folder, recipe = tmp_path_factory.mktemp("store"), answerer.described.recipe
    data = recipe.data
    names = [f"{name}.mp4" for name in "abc"]
    write_store(folder, {name: talker / "videos" / name for name in names}, data.store_options)
    turns = tuple(Turn(question, "left") for question in QUESTIONS)
    return Dataset(
        [Example(name, name, turns, "left") for name in names],
        FrameStore(folder),
        answerer.described.tokenizer,
        answerer.described.template,
        dataclasses.replace(recipe.dataset_options, max_segments=2),
    )


def test_a_session_about_a_file_says_what_the_asker_says_about_the_prepared_video(
    talker, answerer, prepared
):
    opened = read_arrays(answerer.described)
    asker = Asker(
        opened.model,
        opened.params,
        opened.stats,
        opened.tokenizer,
        stop_ids=stop_ids(opened.tokenizer, opened.template),
        batch=4,
        max_new=opened.recipe.evaluation.max_new,
        max_questions=2,
        put=opened.layout.evaluation_batch,
    )
    asked = [a.answer for a in asker.ask(prepared)]
    said = []
    for clip, name in enumerate("abc"):
        seen = answerer.look(talker / "videos" / f"{name}.mp4")
        row = prepared.load(clip, (), None)
        np.testing.assert_array_equal(seen.frames, row.frames[None])
        np.testing.assert_array_equal(seen.mask, row.frame_mask[None])
        session = answerer.session(seen, name)
        said += session.answers(QUESTIONS, max_new=opened.recipe.evaluation.max_new)
    assert said == asked
    assert len(set(said)) >= 5  # they depend on the video and on the question


def test_each_stop_id_of_a_model_s_files_ends_answers(talker, answerer, prepared, tmp_path):
    """In a chat, and in the evaluation of benchmarks: the second of the list too."""
    session = answerer.session(answerer.look(talker / "videos" / "a.mp4"), "a")
    session.ask(QUESTIONS[0], max_new=12)
    said, eos_id = session.turns[0].answer, answerer.described.tokenizer.eos_id
    second = next(token for n, token in enumerate(said) if n and token not in said[:n])
    model = shutil.copytree(talker, tmp_path / "model")
    ids = json.dumps({"eos_token_id": [eos_id, second]})
    (model / "tokenizer" / "generation_config.json").write_text(ids)
    other = Answerer(describe_model(model, mesh=MESH))
    cut = other.session(other.look(talker / "videos" / "a.mp4"), "a")
    cut.ask(QUESTIONS[0], max_new=12)
    assert cut.turns[0].answer == said[: said.index(second)]
    groups, machine = (
        plan(prepared, {}, videos=8, together=2),
        _machine(read_arrays(other.described)),
    )
    answering = Answering(machine, prepared, groups, max_new=12, fusion="lock_step", seed=0)
    (answers,) = answering.run(groups.batches)
    assert len(answers) == 6 and answers[0].ids == cut.turns[0].answer
    assert not any(second in one.ids for one in answers)


def test_the_cache_and_the_parameters_are_split_over_the_devices(talker, answerer):
    session = answerer.session(answerer.look(talker / "videos" / "a.mp4"), "a")
    session.ask(QUESTIONS[0], max_new=3)
    for cache in (session._prefix, session._cache):
        k = cache.k[0]
        assert k.addressable_shards[0].data.size * 2 == k.size
    kernels = [x for x in jax.tree.leaves(answerer.engine._arrays) if x.shape == (16, 24)]
    assert kernels and all(x.addressable_shards[0].data.size * 8 == x.size for x in kernels)


def test_what_cannot_be_asked_is_refused_before_the_model_is_read(talker, monkeypatch):
    told = []
    waiting = Answerer(describe_model(talker), say=told.append)
    seen = waiting.look(talker / "videos" / "a.mp4")
    for question, message in (
        (" \n", "the question is empty"),
        ("left " * 5000, "the context is 4096"),
        ("what \udcff?", "is not UTF-8"),
    ):
        with pytest.raises(PromptError, match=message):
            waiting.check(seen, question)
    waiting.check(seen, "what moves?")
    with pytest.raises(VideoError, match="absent.mp4: is not there"):
        waiting.look(talker / "absent.mp4")
    assert "engine" not in vars(waiting) and not told
    with pytest.raises(ChatError, match="needs the special tokens"):
        describe_model(talker, template="chatml")
    with pytest.raises(ChatError, match="has no chat_template"):
        describe_model(talker, template="folder")
    with pytest.raises(ConfigError, match="data.template='odd'"):
        describe_model(talker, template="odd")


def test_another_template_asks_otherwise(talker, answerer):
    described = describe_model(talker, template="vicuna_v1")
    seen = answerer.look(talker / "videos" / "a.mp4")
    sizes = []
    for one in (answerer.described, described):
        with pytest.raises(PromptError) as error:
            Answerer(one).check(seen, "left " * 5000)
        sizes.append(str(error.value))
    assert described.template != answerer.described.template and sizes[0] != sizes[1]


@pytest.mark.parametrize("wrong", [{"max_new": 0}, {"stop": ("a", "")}])
def test_bad_values_are_refused(wrong):
    with pytest.raises(ValueError, match="max_new=0|stop string is empty"):
        dataclasses.replace(How(), **wrong)
