"""Eight devices say what one says: parameters and cache split, float64."""

import functools

import jax
import numpy as np
import pytest

from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import train
from rvllm_jax.generation import decode
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.sampling import GREEDY, Sampling
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.sharding import layouts
from rvllm_jax.types import Questions

MAX_NEW = 6
HOT = Sampling(temperature=8.0, top_p=0.95, repetition_penalty=1.4)


@pytest.fixture(scope="module")
def layout():
    return layouts.make("jit", dict(data=2, fsdp=2, tensor=2))


def placed(layout, params, stats):
    return jax.device_put((params, stats), layout.array_shardings(params, stats))


@pytest.mark.slow
def test_a_session_on_a_mesh(small_model, layout):
    tokenizer = train(["which way does the red circle go? it goes left and then up"] * 3, 300)
    llama = LlamaConfig(tokenizer.vocab_size, 16, 2, 4, 2, 8, 24, context=256)
    pure, params, stats = small_model(llama)
    rng = np.random.default_rng(3)
    frames, mask = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8), np.ones(3, bool)
    said = []
    for arrays, devices in (
        ((params, stats), None),
        (placed(layout, params, stats), layout),
    ):
        engine = Engine(unroll(pure.merge(*arrays)), tokenizer, TEMPLATES["short"], devices=devices)
        session = engine.session(frames, mask)
        for question, sampling in (("which way?", GREEDY), ("and then?", HOT)):
            session.ask(question, sampling=sampling, max_new=MAX_NEW, seed=4)
        told = [turn.ids for turn in session.turns]
        options = dict(max_new=MAX_NEW, stop=["never"])
        said.append((told, session.answers(["which?", "left?", "up?"], **options)))
    assert said[0] == said[1] and len({*map(tuple, said[0][0]), *said[0][1]}) >= 4
    for cache in (session._prefix, session._cache):
        for array in (*cache.k, *cache.v):
            assert array.dtype == np.float64
            assert array.addressable_shards[0].data.shape[2] * 2 == array.shape[2] == 2
    kernels = [x for x in jax.tree.leaves(engine._arrays) if x.shape == (16, 24)]
    assert kernels and all(x.addressable_shards[0].data.size * 4 == x.size for x in kernels)
    assert engine._advance._cache_size() == 3  # what it returns is what it takes


@pytest.mark.slow
def test_a_batch_on_a_mesh(model_and_arrays, some_questions, layout):
    """Rows split over the devices beside the parameters, as in evaluation."""
    pure, params, stats = model_and_arrays
    questions = Questions(*(np.tile(x, (2, *[1] * (x.ndim - 1))) for x in some_questions))
    questions = questions._replace(frames=questions.frames[[0, 1, 1, 0]])

    @functools.partial(jax.jit, static_argnums=3)
    def ids(params, stats, questions, sampling):
        model = pure.merge(params, stats)
        options = dict(sampling=sampling, max_new=MAX_NEW, stop_ids=(-5,))
        return decode.generate(model, questions, **options)

    there = questions.ids >= 0
    for sampling in (GREEDY, HOT):
        one = np.asarray(ids(params, stats, questions, sampling))
        many = np.asarray(
            ids(*placed(layout, params, stats), layout.evaluation_batch(questions), sampling)
        )
        np.testing.assert_array_equal(one[there], many[there])
