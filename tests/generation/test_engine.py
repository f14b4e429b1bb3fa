"""Every question of real stored clips, asked of a small random model whose answers differ."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.data.batches.clips import FrameSampling
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.batches.loader import question_batches
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text import prompt, tokenizer
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import Tokenizer
from rvllm_jax.data.video import encode
from rvllm_jax.evaluation.controls import score
from rvllm_jax.generation.engine import Engine, Prediction
from rvllm_jax.generation.grouping import Grouping
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.sharding import layouts
from rvllm_jax.types import Example, Turn, VisualLayout

LAYOUT = VisualLayout("global", frames=3)
TEMPLATE = TEMPLATES["short"]
STILL = "still.mp4"  # all its frames are equal
VIDEOS = ("a.mp4", "b.mp4", STILL)


def _example(name: str, video: str, count: int) -> Example:
    turns = (
        Turn(f"What is at {i} of {name}?", f"{name} {i}", f"type{i % 2}") for i in range(count)
    )
    return Example(name, video, tuple(turns), f"Caption of {name}.")


# Two examples are about one video; one has more questions than are asked at once.
EXAMPLES = [
    _example("one", "a.mp4", 2),
    _example("two", "b.mp4", 3),
    _example("three", STILL, 1),
    _example("four", "a.mp4", 2),
]
# Questions go by video: four about a.mp4, three, one. Shown are b.mp4, STILL, a.mp4.
NEXT = dict(enumerate([1] * 4 + [2] * 3 + [0]))
CONFIG = GenerationConfig(max_new=5)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asking")
    rng = np.random.default_rng(0)
    for name in VIDEOS:
        small = rng.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
        if name == STILL:
            small[:] = small[0]
        encode.write(folder / name, small.repeat(8, 1).repeat(8, 2), fps=8)
    paths = {name: folder / name for name in VIDEOS}
    write_store(folder / "store", paths, StoreOptions(short_side=16, frames_per_record=2))
    return folder / "store"


@pytest.fixture(scope="module")
def tk():
    return tokenizer.train(prompt.texts(TEMPLATE, EXAMPLES), 320)


@pytest.fixture
def make(folder, tk):
    def make(examples=EXAMPLES, store=folder, test_clips="1x1"):
        sizes = dict(crop=16, context=96, max_segments=2, views=test_clips)
        options = DatasetOptions(LAYOUT, FrameSampling(LAYOUT.frames, 2), **sizes)
        return Dataset(examples, FrameStore(store), tk, TEMPLATE, options)

    return make


@functools.cache
def model_and_arrays(vocab_size: int):
    def build(rngs):
        resnet = ResNetConfig((1,), False, (8,), stem="small")
        llama = LlamaConfig(vocab_size, 16, 2, 4, 2, 8, 24, context=128)
        types = dict(dtype=jnp.float64, param_dtype=jnp.float64)
        return VideoLLM(resnet, llama, LAYOUT, rngs=rngs, **types)

    pure = FunctionalModel.of(build)
    params, stats = jax.jit(pure.init)(jax.random.key(5))
    large = {n: p * 10 if n.startswith("decoder/") and p.ndim > 1 else p for n, p in params.items()}
    return pure, large, stats


@pytest.fixture(scope="module")
def engine(tk):
    with jax.enable_x64(True):
        model, params, stats = model_and_arrays(tk.vocab_size)
        return Engine(model.merge(params, stats), tk, TEMPLATE, config=CONFIG)


def ask(engine, dataset, videos=2, shown=None, **options) -> list[Prediction]:
    """Of every question, in the dataset's order."""
    grouping = Grouping(dataset, videos=videos, together=2)
    batches = grouping.batches(shown)
    predictions = [p for batch in engine.predict(grouping, batches, **options) for p in batch]
    return sorted(predictions, key=lambda prediction: prediction.question)


def answers(dataset, predictions: list[Prediction]) -> dict[tuple[str, str], str]:
    names = [dataset.examples[number].id for number, _ in dataset.questions]
    texts = [prediction.text for prediction in predictions]
    questions = [turn.question for turn in dataset.turns]
    return dict(zip(zip(names, questions, strict=True), texts, strict=True))


def test_every_question_is_answered_in_its_place_as_if_it_were_alone(make, engine):
    dataset = make()
    predictions = ask(engine, dataset)
    assert [p.question for p in predictions] == list(range(sum(len(c.turns) for c in EXAMPLES)))
    assert len({p.text for p in predictions}) >= 6  # so that a wrong place would show
    for (number, place), prediction in zip(dataset.questions, predictions, strict=True):
        turn = EXAMPLES[number].turns[place]
        assert turn == dataset.turns[prediction.question]
        alone = dataclasses.replace(EXAMPLES[number], turns=(turn,))
        (only,) = ask(engine, make([alone]))
        assert only.text == prediction.text and only.ids == prediction.ids


def test_the_questions_of_a_clip_that_cannot_be_read_stay_in_the_denominators(
    make, engine, folder, tmp_path
):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    entry = FrameStore(tmp_path).entries["b.mp4"]
    (shard,) = tmp_path.glob(f"*array_record-{entry.shard:05d}-of-*")
    content = bytearray(shard.read_bytes())
    content[:] = bytes(255 - byte for byte in content)
    shard.write_bytes(content)
    plain, dataset = answers(make(), ask(engine, make())), make(store=tmp_path)
    damaged = ask(engine, dataset)
    for (name, question), answer in answers(dataset, damaged).items():
        assert answer == ("" if name == "two" else plain[name, question])
    lost = [EXAMPLES[n].id == "two" for n, _ in dataset.questions]
    assert [bool(p.failed) for p in damaged] == lost and not any(
        p.views for p in damaged if p.failed
    )
    assert all(plain[key] for key in plain if key[0] == "two")
    accuracy, counts = score(dataset.turns, [p.text for p in damaged])
    assert counts["all"] == len(plain) and accuracy["all"] == 0


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_questions_are_split_over_the_devices_and_answered_alike(make, tk, kind):
    pure, params, stats = model_and_arrays(tk.vocab_size)
    layout = layouts.make(kind, dict(data=-1, fsdp=1, tensor=1))
    assert layout.batch_shards == 8
    alone = Engine(pure.merge(params, stats), tk, TEMPLATE, config=CONFIG)
    shown = pure.merge(*layout.evaluation_arrays(params, stats))
    spread = Engine(shown, tk, TEMPLATE, config=CONFIG, devices=layout)
    dataset = make()
    assert ids(ask(spread, dataset, videos=8)) == ids(ask(alone, dataset, videos=8))
    grouping = Grouping(dataset, videos=8, together=2)
    rows = grouping.rows(grouping.batches())
    (questions,) = question_batches(dataset, rows, batch=8, max_questions=2)

    def temporaries(engine, questions):
        """Bytes a device."""
        program = engine._answering[1, False].lower(engine._arrays, questions).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert (
        temporaries(spread, layout.evaluation_batch(questions)) < temporaries(alone, questions) / 4
    )


def ids(predictions: list[Prediction]) -> list[list[int]]:
    return [prediction.ids for prediction in predictions]


def test_other_arrays_are_asked_by_the_same_programs(make, engine, tk):
    """As in validation, which asks the arrays of another update each time."""
    plain = ask(engine, make())
    pure, params, stats = model_and_arrays(tk.vocab_size)
    zeros = {name: jnp.zeros_like(p) for name, p in params.items()}
    program = engine._answering[1, False]
    compiled = program._cache_size()
    other = engine.with_model(pure.merge(zeros, stats))
    assert ids(ask(other, make())) != ids(plain)
    assert other._answering[1, False] is program and program._cache_size() == compiled
    assert ids(ask(engine, make())) == ids(plain)


def test_blind_does_not_depend_on_the_frames(make, engine):
    blind = ids(ask(engine, make(), blind=True))
    assert blind == ids(ask(engine, make(), blind=True, shown=NEXT))
    assert blind != ids(ask(engine, make()))


def test_the_answer_that_most_test_clips_give_counts(make, engine, tk, monkeypatch):
    """Of two that equally many give, the first one."""
    dataset = make(test_clips="5x5")
    given = {}  # number of a question -> the answers of its test clips, in order

    def tokens(questions, **options):
        ids = np.full((*questions.ids.shape, 5), tk.eos_id)
        for place, number in np.ndenumerate(questions.ids):
            if number < 0:
                continue
            texts = given.setdefault(int(number), [])
            text = "abc"[(len(texts) + number) % 3]
            texts += [text] * int(questions.view_counts[place[0]])
            ids[place][:1] = tk.encode(text)[:1]
        return ids, questions.ids

    pure, params, stats = model_and_arrays(tk.vocab_size)
    few = Engine(pure.merge(params, stats), tk, TEMPLATE, config=CONFIG, fusion="vote")
    monkeypatch.setattr(few, "tokens", tokens)
    predictions = ask(few, dataset)
    assert len(predictions) == len(dataset.questions)
    for number, prediction in enumerate(predictions):
        texts = given[number]
        assert len(texts) == 25 == sum(view.count for view in prediction.views)
        assert prediction.text == max(dict.fromkeys(texts), key=texts.count)
    assert {prediction.text for prediction in predictions} == set("abc")


def test_questions_are_asked_about_the_video_that_is_shown(make, engine):
    following = dict(zip(VIDEOS, VIDEOS[1:] + VIDEOS[:1], strict=True))
    others = [dataclasses.replace(c, video=following[c.video]) for c in EXAMPLES]
    swapped = answers(make(), ask(engine, make(), shown=NEXT))
    assert swapped == answers(make(others), ask(engine, make(others)))
    assert swapped != answers(make(), ask(engine, make()))


def test_shuffled_changes_the_order_and_nothing_else(make, engine):
    plain, shuffled = (
        answers(make(), ask(engine, make(), permute_seed=seed)) for seed in (None, 0)
    )
    assert shuffled == answers(make(), ask(engine, make(), permute_seed=0))  # by one seed
    changed = {key[0] for key in plain if plain[key] != shuffled[key]}
    assert changed and "three" not in changed  # its frames are all equal


def test_an_answer_ends_before_eos_and_loses_its_outer_spaces(engine, tk):
    ids = tk.encode(" one 1 ")
    for tokens, text in (
        ([*ids, tk.eos_id, *tk.encode("two")], "one 1"),
        (ids, "one 1"),
        ([tk.eos_id], ""),
    ):
        assert engine.prediction(0, [np.array(tokens)], [1], engine.config.stop).text == text


def test_answers_end_where_the_template_says(make, engine, tk):
    """By another token than eos, as <|eot_id|>: one that the model writes in some answers."""
    dataset = make()
    plain = [p.text for p in ask(engine, dataset)]
    end = tk.encode(" 1")[0]  # one of the training text's own
    assert any(" 1" in answer for answer in plain)
    several = Tokenizer(tk.model, tk.specials, None, (tk.eos_id, end))
    pure, params, stats = model_and_arrays(tk.vocab_size)
    other = Engine(pure.merge(params, stats), several, TEMPLATE, config=CONFIG)
    cut = [p.text for p in ask(other, dataset)]
    assert cut != plain
    for before, after in zip(plain, cut, strict=True):
        assert tk.decode([end]) not in after and before.startswith(after)
