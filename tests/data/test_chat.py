"""The chat templates: the texts they spell, and the loss mask that follows from them."""

import hashlib
import json

import pytest

from rvllm_jax.data import chat, tokenizer
from rvllm_jax.data.conversations import Conversation, Turn

TURNS = (Turn("What colour is it?", "Red."), Turn("Why {is} it %s?", "Paint </s>."))
CONVERSATION = Conversation("c", "c.mp4", TURNS, "A red thing.")


@pytest.fixture(scope="module")
def tk():
    texts = [list(chat.texts(each, [CONVERSATION])) for each in chat.TEMPLATES.values()]
    return tokenizer.train(sum(texts, []) * 3, 700)


def test_vicuna_v1_spells_llava_s_prompt(tk):
    template = chat.TEMPLATES["vicuna_v1"]
    before, after = chat.prefix_ids(tk, template)
    ids, _ = chat.segment_ids(tk, template, TURNS)
    assert before[0] == tk.bos_id
    assert tk.decode(before) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: "
    )
    assert tk.decode(after) == "\n"
    # LLaVA: sep2 is "</s>", with no space behind it.
    spelled = "EOS".join(tk.decode(part) for part in _split(ids, tk.eos_id))
    assert spelled == (
        "What colour is it? ASSISTANT: Red.EOSUSER: Why {is} it %s? ASSISTANT: Paint </s>.EOS"
    )


def test_short_has_neither_system_prompt_nor_roles(tk):
    template = chat.TEMPLATES["short"]
    assert chat.prefix_ids(tk, template) == ([tk.bos_id], tk.encode("\n"))
    ids, _ = chat.segment_ids(tk, template, TURNS[:1])
    assert tk.decode(ids) == "What colour is it? Red."


@pytest.mark.parametrize("name", chat.TEMPLATES)
def test_weights_are_one_on_answers_and_their_eos_alone(tk, name):
    ids, weights = chat.segment_ids(tk, chat.TEMPLATES[name], TURNS)
    assert len(ids) == len(weights)
    learned = [i for i, w in zip(ids, weights, strict=True) if w]
    assert [tk.decode(part) for part in _split(learned, tk.eos_id)] == [" Red.", " Paint </s>.", ""]
    assert learned.count(tk.eos_id) == ids.count(tk.eos_id) == 2
    assert set(weights) == {0, 1}


@pytest.mark.parametrize("name", chat.TEMPLATES)
def test_a_question_asked_is_exactly_the_start_of_the_segment_trained_on(tk, name):
    template = chat.TEMPLATES[name]
    for turn in TURNS:
        asked = chat.question_ids(tk, template, turn.question)
        ids, weights = chat.segment_ids(tk, template, [turn])
        assert ids[: len(asked)] == asked
        assert weights == [0] * len(asked) + [1] * (len(ids) - len(asked))


def test_the_prefix_opens_the_sequence_and_nothing_else_does(tk, tmp_path):
    """A tokenizer may put a space at the start of a sequence; parts behind must not gain one."""
    tk.save(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Prepend", "prepend": " "}
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    opening, template = tokenizer.load(tmp_path), chat.TEMPLATES["vicuna_v1"]
    before, after = chat.prefix_ids(opening, template)
    assert opening.decode(before).startswith(" A chat")  # and no bos where a tokenizer has none
    assert after == tk.encode("\n")
    assert chat.segment_ids(opening, template, TURNS) == chat.segment_ids(tk, template, TURNS)


def _split(ids, at):
    parts = [[]]
    for i in ids:
        if i == at:
            parts.append([])
        else:
            parts[-1].append(i)
    return parts


@pytest.mark.parametrize(
    ("name", "digest"), [("vicuna_v1", "9ff1b5cf948f296b"), ("short", "48107fa9eff85865")]
)
def test_the_ids_that_earlier_runs_were_trained_on_stay(name, digest):
    """Checkpoints exist that were trained on these prompts; recorded before the other templates."""
    questions = ["What colour is it?", "Why {is} it %s?", "How  many?"]
    answers = ["Red.", "Paint </s>. \U0001f642", "Three\n four"]
    turns = [Turn(*turn) for turn in zip(questions, answers, strict=True)]
    texts = ["USER: What colour is it? ASSISTANT:", " The circle is red, then </s><s> <0x41>."]
    system = "A chat between a curious user and an artificial intelligence assistant."
    tk, template = tokenizer.train([*texts, system] * 20, 500), chat.TEMPLATES[name]
    ids = [
        chat.prefix_ids(tk, template),
        chat.segment_ids(tk, template, turns),
        [chat.question_ids(tk, template, q) for q in questions],
        [chat.question_ids(tk, template, q, first=False) for q in questions],
        list(chat.texts(template, [])),
    ]
    assert tk.fingerprint == "6458bf5e4da16d94"
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] == digest
