"""A conversation that keeps its cache says what one without any cache would say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import Tokenizer, train
from rvllm_jax.generation import decode
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.prompts import AnsweredTurn, PromptError
from rvllm_jax.generation.sampling import GREEDY, Sampling, SamplingError
from rvllm_jax.generation.streaming import text_of
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.types import NO_SLOT

QUESTIONS = ["which way does it go?", "and then?", "what colour is the circle? red or é 赤"]
TEMPLATE = TEMPLATES["short"]
CONTEXT, MAX_NEW = 256, 6
HOT = Sampling(temperature=8.0, top_p=0.95, repetition_penalty=1.4)


@pytest.fixture(scope="module")
def parts(small_model):
    tokenizer = train(["which way does the red circle go? it goes left and then up"] * 3, 300)
    llama = LlamaConfig(tokenizer.vocab_size, 16, 2, 4, 2, 8, 24, context=CONTEXT)
    pure, params, stats = small_model(llama)
    with jax.enable_x64(True):
        model = pure.merge(params, stats)
        return model, tokenizer, Engine(unroll(model), tokenizer, TEMPLATE)


@pytest.fixture(scope="module")
def uncached(parts):
    """Greedy ids behind `prompt` from the training-time forward pass, all tokens each time."""
    model, tokenizer, _ = parts

    @jax.jit
    def logits(visual, tokens, slots):
        x = model.embed(tokens, slots, visual)
        L = tokens.shape[1]
        hidden, _ = model.decoder(x, jnp.arange(L)[None], jnp.zeros((1, L), jnp.int32))
        return model.decoder.logits(hidden)[0]

    def of(frames, mask, prompt, max_new=MAX_NEW):
        visual = model.encode(frames[None], mask[None], use_running=True)
        row = [tokenizer.bos_id, *[0] * int(mask.sum()), *tokenizer.encode("\n"), *prompt]
        start = len(row)
        for _ in range(max_new):
            tokens, slots = np.zeros((1, CONTEXT), np.int32), np.full((1, CONTEXT), NO_SLOT)
            tokens[0, : len(row)] = row
            slots[0, 1 : 1 + int(mask.sum())] = np.arange(int(mask.sum()))
            row.append(int(np.argmax(logits(visual, tokens, slots)[len(row) - 1])))
            if row[-1] == tokenizer.eos_id:
                return row[start:-1]
        return row[start:]

    return of


def clip(seed: int):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8), np.array([True, True, seed % 2 == 0])


def test_turns_are_those_of_uncached_decoding(parts, uncached):
    _, tokenizer, engine = parts
    session = engine.session(*clip(0))
    prompt: list[int] = []
    for number, question in enumerate(QUESTIONS):
        text = session.ask(question, max_new=MAX_NEW)
        prompt += tokenizer.encode(question)
        expected = uncached(*clip(0), prompt)
        assert session.turns[number] == AnsweredTurn(question, expected)
        assert text == text_of(tokenizer.decode, expected).strip()
        prompt += [*expected, tokenizer.eos_id]
    answers = [tuple(turn.ids) for turn in session.turns]
    assert len(set(answers)) == 3  # they do differ


def test_a_turn_reads_only_what_is_new(parts, monkeypatch):
    _, tokenizer, engine = parts
    read, prefixes = [], []
    for name, log in (("read_asked", read), ("read_prefix", prefixes)):
        real = getattr(engine, name)

        def logged(*args, real=real, log=log):
            log.append(args)
            return real(*args)

        monkeypatch.setattr(engine, name, logged)
    session = engine.session(*clip(0))
    for question in QUESTIONS:
        session.ask(question, max_new=MAX_NEW)
    session.answers(QUESTIONS, max_new=MAX_NEW)
    session.reset()
    session.ask(QUESTIONS[1], max_new=MAX_NEW)
    assert len(prefixes) == 1
    lengths = [int(args[2].sum(1).max()) for args in read]
    asked = [len(tokenizer.encode(question)) for question in QUESTIONS]
    # Before each later question: the end of the turn before it, and its last token.
    assert lengths[0] == asked[0] and lengths[4] == asked[1]
    assert asked[1] < lengths[1] <= asked[1] + 2 and asked[2] < lengths[2] <= asked[2] + 2


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_kept_and_fresh_caches_answer_alike(parts, sampling):
    """Also after turns are taken back, and after an answer that a stop string cut."""
    _, tokenizer, engine = parts
    session = engine.session(*clip(1))

    def both(question, **options):
        fresh = engine.session(*clip(1))
        fresh.turns = list(session.turns)
        options |= dict(sampling=sampling, max_new=MAX_NEW, seed=5)
        assert session.ask(question, **options) == fresh.ask(question, **options)
        assert session.turns == fresh.turns

    both(QUESTIONS[0])
    both(QUESTIONS[1])
    whole = text_of(tokenizer.decode, session.turns[1].ids)
    session.turns = session.turns[:1]
    both(QUESTIONS[1], stop=[whole[2:4]])
    said = text_of(tokenizer.decode, session.turns[1].ids)
    assert said == whole[: whole.index(whole[2:4])]
    both(QUESTIONS[2])


def test_questions_apart_are_first_turns(parts):
    _, _, engine = parts
    session = engine.session(*clip(1))
    session.ask("it goes", max_new=3)
    together = session.answers(QUESTIONS, max_new=MAX_NEW)
    assert len(session.turns) == 1
    for question, answer in zip(QUESTIONS, together, strict=True):
        session.reset()
        assert session.ask(question, max_new=MAX_NEW) == answer
    assert session.answers([]) == []
    # With stop strings, looked for again and again, and each with its own seed.
    stop, seeds = [together[0][3:5], "never"], [7, 7, 2]
    for options in (dict(sampling=HOT, seeds=seeds), dict(stop=stop)):
        options |= dict(max_new=20)
        together = session.answers(QUESTIONS, **options)
        for number, answer in enumerate(together):
            own = dict(options)
            if own.pop("seeds", None):
                own["seed"] = seeds[number]
            session.reset()
            assert session.ask(QUESTIONS[number], **own) == answer


def test_a_long_question_leaves_the_others_their_room(parts):
    _, _, engine = parts
    session = engine.session(*clip(1))
    questions = ["left " * 118, QUESTIONS[0]]
    together = session.answers(questions, max_new=20)
    alone = [session.answers([question], max_new=20)[0] for question in questions]
    assert together == alone
    assert session._room(session._prompt(questions[0], [])) < 20


def test_an_answer_ends_as_the_template_says(parts):
    model, tokenizer, engine = parts
    session = engine.session(*clip(0))
    session.ask(QUESTIONS[0], max_new=MAX_NEW)
    said = session.turns[0].ids
    texts = [tokenizer.decode([token]) for token in said]
    at = next(n for n, t in enumerate(texts) if n and tokenizer.encode(t) == [said[n]])
    template = dataclasses.replace(TEMPLATE, ends=texts[at])
    other = Engine(model, tokenizer, template).session(*clip(0))
    other.ask(QUESTIONS[0], max_new=MAX_NEW)
    assert other.turns[0].ids == said[: said.index(said[at])]
    expected = text_of(tokenizer.decode, other.turns[0].ids).strip()
    assert other.answers(QUESTIONS[:1], max_new=MAX_NEW) == [expected]


def test_each_of_several_stop_ids_ends_an_answer(parts):
    """Where a model's files list several; the second one here, which the answer comes to."""
    model, tokenizer, engine = parts
    session = engine.session(*clip(0))
    session.ask(QUESTIONS[0], max_new=MAX_NEW)
    said = session.turns[0].ids
    second = next(token for n, token in enumerate(said) if n and token not in said[:n])
    several = Tokenizer(tokenizer.model, tokenizer.specials, None, (tokenizer.eos_id, second))
    other = Engine(model, several, TEMPLATE).session(*clip(0))
    other.ask(QUESTIONS[0], max_new=MAX_NEW)
    assert other.turns == [AnsweredTurn(QUESTIONS[0], said[: said.index(second)])]
    text = text_of(tokenizer.decode, other.turns[0].ids).strip()
    assert other.answers(QUESTIONS[:1], max_new=MAX_NEW) == [text]
    session.turns = list(other.turns)
    session.ask(QUESTIONS[1], max_new=MAX_NEW)
    other.ask(QUESTIONS[1], max_new=MAX_NEW)  # the conversation goes on behind it
    (*_, said), (*_, ended) = session.turns, other.turns
    assert ended.ids == [*said.ids, second][: [*said.ids, second].index(second)]


def test_videos_of_other_lengths_are_not_compiled_anew(parts):
    _, _, engine = parts
    engine.session(*clip(0))
    before = engine._prefix._cache_size()
    assert clip(0)[1].sum() != clip(1)[1].sum()
    engine.session(*clip(1))
    assert engine._prefix._cache_size() == before


def test_the_answer_of_several_clips_is_that_of_generate(parts):
    model, tokenizer, engine = parts
    (frames, mask), (others, _) = clip(0), clip(2)
    counts, options = [3, 1], dict(stop_ids=(tokenizer.eos_id,), max_new=MAX_NEW)
    session = engine.session(np.stack([frames, others]), np.stack([mask, mask]), counts)
    session.ask(QUESTIONS[0], max_new=MAX_NEW)
    asked = np.array([[tokenizer.encode(QUESTIONS[0])]] * 2, np.int32)
    questions = session._questions._replace(
        question_tokens=asked,
        question_mask=np.ones(asked.shape, bool),
        ids=np.zeros((2, 1), np.int32),
    )
    run = jax.jit(lambda q: decode.generate(model, q, views=2, **options))
    ids = np.asarray(run(questions))[0, 0].tolist()
    end = ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else MAX_NEW
    assert session.turns[0].ids == ids[:end]


def test_pieces_come_token_by_token_and_a_closed_stream_keeps_what_was_said(parts, uncached):
    _, tokenizer, engine = parts
    session = engine.session(*clip(0))
    expected = uncached(*clip(0), tokenizer.encode(QUESTIONS[0]))
    stream = session.stream(QUESTIONS[0], max_new=MAX_NEW)
    assert session.turns == []
    first = next(stream)
    stream.close()
    said = session.turns[0].ids
    assert 1 <= len(said) < MAX_NEW and said == expected[: len(said)]
    assert text_of(tokenizer.decode, said).startswith(first)
    fresh = engine.session(*clip(0))
    fresh.turns = list(session.turns)
    options = dict(max_new=MAX_NEW)
    assert session.ask(QUESTIONS[1], **options) == fresh.ask(QUESTIONS[1], **options)


@pytest.mark.parametrize(("step", "number", "kept"), [("read_asked", 2, 0), ("advance", 7, 2)])
def test_an_interrupted_step_costs_the_cache_and_nothing_else(
    parts, monkeypatch, step, number, kept
):
    """Ctrl-C while the second turn's cache is given away, before its answer and within it."""
    _, _, engine = parts
    session, other = engine.session(*clip(0)), engine.session(*clip(0))
    real, calls = getattr(engine, step), []

    def interrupted(*args):
        calls.append(0)
        result = real(*args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return result

    options = dict(max_new=MAX_NEW)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, step, interrupted)
        session.ask(QUESTIONS[0], **options)
        session.ask(QUESTIONS[1], **options)
    answers = [len(turn.ids) for turn in session.turns]
    assert answers == [MAX_NEW, kept][: 1 + bool(kept)]  # a turn that was not begun is none
    other.turns = list(session.turns)
    assert session.ask(QUESTIONS[2], **options) == other.ask(QUESTIONS[2], **options)


def test_bad_questions_are_refused_before_anything_is_computed(parts, monkeypatch):
    _, _, engine = parts
    session = engine.session(*clip(0))
    monkeypatch.setattr(engine, "read_asked", None)
    for question, message in ((" \n", "the question is empty"), ("left " * 400, "context is 256")):
        with pytest.raises(PromptError, match=message):
            session.stream(question)
        with pytest.raises(PromptError, match=message):
            session.answers([question])
    with pytest.raises(SamplingError, match="max_new=0"):
        session.stream("which?", max_new=0)
    assert session.turns == []


def test_an_answer_ends_where_the_context_ends(parts):
    _, tokenizer, engine = parts
    session = engine.session(*clip(0))
    question = "left " * 40
    session.ask(question, max_new=10_000)
    used = len(tokenizer.encode(question)) + len(session.turns[0].ids) + 5
    assert used <= CONTEXT
    with pytest.raises(PromptError, match="begin a new conversation"):
        session.turns.append(AnsweredTurn("left " * 200, []))
        session.ask("which?")
