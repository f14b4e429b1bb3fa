"""Asking every question of real stored clips, of a small random model whose answers differ."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.data.annotations.example import Example, Turn
from rvllm_jax.data.batches.clips import FrameSampling
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.batches.loader import eval_batches
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text import prompt, tokenizer
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.video import encode
from rvllm_jax.evaluation.asking import Asked, Asker, score
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.sharding import layouts
from rvllm_jax.types import VisualLayout

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
# Questions go by clip: four about a.mp4, three, one. Shown are b.mp4, STILL, a.mp4.
NEXT = [1] * 4 + [2] * 3 + [0]


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
def asker(tk):
    with jax.enable_x64(True):
        model, params, stats = model_and_arrays(tk.vocab_size)
    return Asker(model, params, stats, tk, batch=2, max_new=5, max_questions=2)


def answers(asked: list[Asked]) -> dict[tuple[str, str], str]:
    names = [EXAMPLES[a.example].id for a in asked]
    return {(name, a.turn.question): a.answer for name, a in zip(names, asked, strict=True)}


def test_every_question_is_answered_in_its_place_as_if_it_were_alone(make, asker):
    dataset, done = make(), []
    asked = asker.ask(dataset, progress=done.append)
    assert sum(done) == len(asked) == sum(len(c.turns) for c in EXAMPLES)
    for (number, turn), a in zip(dataset.questions, asked, strict=True):
        assert a.example == number and a.turn == EXAMPLES[number].turns[turn]
    assert len({a.answer for a in asked}) >= 6  # so that a wrong place would show
    for a in asked:
        alone = dataclasses.replace(EXAMPLES[a.example], turns=(a.turn,))
        (only,) = asker.ask(make([alone]))
        assert only.answer == a.answer


def test_the_questions_of_a_clip_that_cannot_be_read_stay_in_the_denominators(
    make, asker, folder, tmp_path
):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    entry = FrameStore(tmp_path).entries["b.mp4"]
    (shard,) = tmp_path.glob(f"*array_record-{entry.shard:05d}-of-*")
    content = bytearray(shard.read_bytes())
    content[:] = bytes(255 - byte for byte in content)
    shard.write_bytes(content)
    plain, damaged = answers(asker.ask(make())), asker.ask(make(store=tmp_path))
    for (name, question), answer in answers(damaged).items():
        assert answer == ("" if name == "two" else plain[name, question])
    assert all(plain[key] for key in plain if key[0] == "two")
    accuracy, counts = score(damaged)
    assert counts["all"] == len(plain) and accuracy["all"] == 0


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_questions_are_split_over_the_devices_and_answered_alike(make, tk, kind):
    model, params, stats = model_and_arrays(tk.vocab_size)
    layout = layouts.make(kind, dict(data=-1, fsdp=1, tensor=1))
    assert layout.batch_shards == 8
    settings = dict(batch=8, max_new=5, max_questions=2)
    alone = Asker(model, params, stats, tk, **settings)
    spread = Asker(
        model, *layout.evaluation_arrays(params, stats), tk, put=layout.evaluation_batch, **settings
    )
    dataset = make()
    assert answers(spread.ask(dataset)) == answers(alone.ask(dataset))
    questions = next(iter(eval_batches(dataset, batch=8, max_questions=2)))

    def temporaries(asker):
        """Bytes a device."""
        inputs = (asker.params, asker.stats, asker.put(questions))
        return asker._answer[False].lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(spread) < temporaries(alone) / 4


def test_of_asks_with_other_arrays(make, asker):
    zeros = {name: jnp.zeros_like(p) for name, p in asker.params.items()}
    assert answers(asker.of(zeros, asker.stats).ask(make())) != answers(asker.ask(make()))


def test_blind_does_not_depend_on_the_frames(make, asker):
    blind = answers(asker.ask(make(), blind=True))
    assert blind == answers(asker.ask(make(), blind=True, shown=NEXT))
    assert blind != answers(asker.ask(make()))


def test_the_answer_that_most_test_clips_give_counts(make, asker, monkeypatch):
    """Of two that equally many give, the first one."""
    dataset = make(test_clips="5x5")
    said = {}  # number of a question -> the answers of its test clips, in order

    def answer(params, stats, questions):
        ids = np.full((*questions.ids.shape, 5), asker.tokenizer.eos_id)
        for place, number in np.ndenumerate(questions.ids):
            own = said.setdefault(int(number), [])
            text = "abc"[(len(own) + number) % 3]
            own += [text] * int(questions.view_counts[place[0]])
            ids[place][:1] = asker.tokenizer.encode(text)[:1]
        return ids

    few = copy.copy(asker)
    few._answer = {False: answer}
    counted = []
    asked = few.ask(dataset, test_clips=True, progress=counted.append)
    assert sum(counted) == len(dataset.questions)
    for number, one in enumerate(asked):
        own = said[number]
        assert len(own) == 25
        assert one.answer == max(dict.fromkeys(own), key=own.count)
    assert {one.answer for one in asked} == set("abc")


def test_questions_are_asked_about_the_video_that_is_shown(make, asker):
    following = dict(zip(VIDEOS, VIDEOS[1:] + VIDEOS[:1], strict=True))
    others = [dataclasses.replace(c, video=following[c.video]) for c in EXAMPLES]
    swapped = answers(asker.ask(make(), shown=NEXT))
    assert swapped == answers(asker.ask(make(others)))
    assert swapped != answers(asker.ask(make()))


def test_shuffled_changes_the_order_and_nothing_else(make, asker):
    plain, shuffled = (answers(asker.ask(make(), permute=on)) for on in (False, True))
    assert shuffled == answers(asker.ask(make(), permute=True))  # by one seed
    changed = {key[0] for key in plain if plain[key] != shuffled[key]}
    assert changed and "three" not in changed  # its frames are all equal


def test_true_answers_that_are_longer_than_those_given_are_counted(make, asker, tk, caplog):
    dataset = make()
    lengths = sorted(len(tk.encode(turn.answer)) for turn in dataset.turns)
    few = copy.copy(asker)
    few.max_new = lengths[-1] - 1
    few.warn_of_long(dataset, "test")
    count = lengths.count(lengths[-1])
    assert f"test: {count} of {len(lengths)} true answers" in caplog.text
    assert f"raise it to {lengths[-1]}" in caplog.text
    caplog.clear()
    few.max_new = lengths[-1]
    few.warn_of_long(dataset, "test")
    assert not caplog.text


def test_an_answer_ends_before_eos_and_loses_its_outer_spaces(asker, tk):
    said = tk.encode(" one 1 ")
    assert asker._text(np.array([*said, tk.eos_id, *tk.encode("two")])) == "one 1"
    assert asker._text(np.array(said)) == "one 1"
    assert asker._text(np.array([tk.eos_id])) == ""


def test_answers_end_where_the_template_says(make, asker, tk):
    """By another token than eos, as <|eot_id|>: one that the model writes in some answers."""
    dataset = make()
    plain = [a.answer for a in asker.ask(dataset)]
    end = tk.encode(" 1")[0]  # one of the training text's own
    assert any(" 1" in answer for answer in plain)
    how = dict(batch=2, max_new=5, max_questions=2)
    model, params, stats = model_and_arrays(tk.vocab_size)
    other = Asker(model, params, stats, tk, stop_ids=(tk.eos_id, end), **how)
    cut = [a.answer for a in other.ask(dataset)]
    assert cut != plain
    for before, after in zip(plain, cut, strict=True):
        assert tk.decode([end]) not in after and before.startswith(after)
