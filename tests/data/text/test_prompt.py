"""The chat templates: the texts they spell, and the loss mask that follows from them."""

import hashlib
import itertools
import json

import pytest
import tokenizers

from rvllm_jax.data.batches.dataset import DatasetError
from rvllm_jax.data.text import prompt, tokenizer
from rvllm_jax.data.text.template import TEMPLATES, ChatTemplateError
from rvllm_jax.system.fingerprint import SHORT, digest, recorded
from rvllm_jax.types import Example, Turn

TURNS = (Turn("What colour is it?", "Red."), Turn("Why {is} it %s?", "Paint </s>."))
EXAMPLE = Example("c", "c.mp4", TURNS, "A red thing.")


@pytest.fixture(scope="module")
def tk(tmp_path_factory):
    """A tokenizer that knows the special tokens of every template."""
    texts = [list(prompt.texts(each, [EXAMPLE])) for each in TEMPLATES.values()]
    trained = tokenizer.train(sum(texts, []) * 3, 700)
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.add_special_tokens([t for each in TEMPLATES.values() for t in each.specials])
    inner.save(str(folder / "tokenizer.json"))
    return tokenizer.load(folder)


def spelled(tk, template, turns) -> str:
    """What the model sees, special tokens included, with <video> where it is."""
    before, after = prompt.prefix_ids(tk, template)
    ids, _ = prompt.segment_ids(tk, template, turns)
    shown = {number: token for token, number in tk.special_ids.items()}

    def text(ids):
        found = [i for i in ids if i in shown]
        parts = [tk.decode(part) for part in _split([None if i in shown else i for i in ids], None)]
        return parts[0] + "".join(shown[i] + p for i, p in zip(found, parts[1:], strict=True))

    return text(before) + "<video>" + text(after + ids)


VICUNA = (
    "<s>A chat between a curious {0} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {0}'s questions. USER: <video>\n"
    "What colour is it? ASSISTANT: Red.</s>USER: Why {{is}} it %s? ASSISTANT: Paint </s>.</s>"
)
SEES = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vicuna_v1", VICUNA.format("user")),
        ("llava_v1", VICUNA.format("human")),
        (
            "llama-2-chat",
            f"<s>[INST] <<SYS>>\n{SEES}\n<</SYS>>\n\n<video>\nWhat colour is it? [/INST] Red. </s>"
            "<s>[INST] Why {is} it %s? [/INST] Paint </s>. </s>",
        ),
        (
            "llama-3",
            f"<s><|start_header_id|>system<|end_header_id|>\n\n{SEES}<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n<video>\nWhat colour is it?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nRed.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhy {is} it %s?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nPaint </s>.<|eot_id|>",
        ),
        (
            "chatml",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<video>\n"
            "What colour is it?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
            "<|im_start|>user\nWhy {is} it %s?<|im_end|>\n"
            "<|im_start|>assistant\nPaint </s>.<|im_end|>",
        ),
    ],
)
def test_a_template_spells_what_llava_s_conversation_py_does(tk, name, expected):
    """By hand from get_prompt of LLaVA and LLaVA-NeXT, the last of which end with a newline."""
    assert spelled(tk, prompt.find_template(name, tk), TURNS) == expected


def test_plain_is_the_video_and_its_caption(tk):
    template = prompt.find_template("plain", tk)
    assert spelled(tk, template, TURNS[:1]) == "<s><video>\nRed.\n"
    ids, weights = prompt.segment_ids(tk, template, TURNS[:1])
    assert weights == [0] + [1] * (len(ids) - 1)
    with pytest.raises(ChatTemplateError, match=r"2 turns cannot follow.*independent_turns"):
        prompt.segment_ids(tk, template, TURNS)
    with pytest.raises(ChatTemplateError, match=r"turn 1.*holds the token that ends.*line break"):
        prompt.segment_ids(tk, template, [Turn("What?", "Red.\nBlue.")])


def test_short_has_neither_system_prompt_nor_roles(tk):
    template = TEMPLATES["short"]
    assert prompt.prefix_ids(tk, template) == ([tk.bos_id], tk.encode("\n"))
    ids, _ = prompt.segment_ids(tk, template, TURNS[:1])
    assert tk.decode(ids) == "What colour is it? Red."


@pytest.mark.parametrize("name", TEMPLATES)
def test_weights_are_one_on_answers_and_their_end_alone(tk, name):
    template = prompt.find_template(name, tk)
    turns = TURNS if template.shows_question else TURNS[:1]
    ids, weights = prompt.segment_ids(tk, template, turns)
    assert len(ids) == len(weights)
    end = prompt.end_id(tk, template)
    learned = [i for i, w in zip(ids, weights, strict=True) if w]
    answers = [template.answers + turn.answer + template.closes for turn in turns]
    assert [tk.decode(part) for part in _split(learned, end)] == [*answers, ""]
    # Turn by turn: what is given before an answer is what is asked at test.
    runs = [
        list(own) for _, own in itertools.groupby(zip(ids, weights, strict=True), lambda p: p[1])
    ]
    assert [w for run in runs for w in {w for _, w in run}] == [0, 1] * len(turns)
    for number, (turn, run) in enumerate(zip(turns, runs[::2], strict=True)):
        asked = prompt.question_ids(tk, template, turn.question, first=number == 0)
        assert [i for i, _ in run] == asked


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        (Turn(" ", "Red."), "the question is empty"),
        (Turn("What?", ""), "turn 1, 'What\\?': the answer '' has no token"),
        (Turn("What?", " \n"), "would teach nothing"),
    ],
)
def test_a_turn_that_would_teach_nothing_is_refused(tk, turn, says):
    for name in ("vicuna_v1", "short", "chatml"):
        with pytest.raises(ChatTemplateError, match=says):
            prompt.segment_ids(tk, TEMPLATES[name], [turn])


def test_a_dataset_names_the_example_that_would_teach_nothing(make, examples):
    lost = Example("lost", "a.mp4", (Turn("What?", "Red."), Turn("Why?", "")), "x")
    with pytest.raises(DatasetError, match=r"'lost': turn 1, 'Why\?': the answer ''"):
        make([*examples, lost])


def test_a_template_that_the_tokenizer_cannot_spell_is_refused(tk):
    trained = tokenizer.train(["a b"] * 9, 300)
    for known in (trained, None):
        with pytest.raises(
            ChatTemplateError, match=r"'chatml' needs.*<\|im_start\|>, <\|im_end\|>"
        ):
            prompt.find_template("chatml", known)
        with pytest.raises(ChatTemplateError, match=r"'folder', but.*no chat_template"):
            prompt.find_template("folder", known)
        assert prompt.find_template("llama-2-chat", known).bos


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_asked_is_exactly_the_start_of_the_segment_trained_on(tk, name):
    template = prompt.find_template(name, tk)
    for turn in TURNS:
        asked = prompt.question_ids(tk, template, turn.question)
        ids, weights = prompt.segment_ids(tk, template, [turn])
        assert ids[: len(asked)] == asked
        assert weights == [0] * len(asked) + [1] * (len(ids) - len(asked))


def test_the_prefix_opens_the_sequence_and_nothing_else_does(tk, tmp_path):
    """A tokenizer may put a space at the start of a sequence; parts behind must not gain one."""
    tk.save(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Prepend", "prepend": " "}
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    opening, template = tokenizer.load(tmp_path), TEMPLATES["vicuna_v1"]
    before, after = prompt.prefix_ids(opening, template)
    assert opening.decode(before).startswith(" A chat")  # and no bos where a tokenizer has none
    assert after == tk.encode("\n")
    assert prompt.segment_ids(opening, template, TURNS) == prompt.segment_ids(tk, template, TURNS)


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
    tk, template = tokenizer.train([*texts, system] * 20, 500), TEMPLATES[name]
    ids = [
        prompt.prefix_ids(tk, template),
        prompt.segment_ids(tk, template, turns),
        [prompt.question_ids(tk, template, q) for q in questions],
        [prompt.question_ids(tk, template, q, first=False) for q in questions],
        list(prompt.texts(template, [])),
    ]
    assert tk.fingerprint == "6458bf5e4da16d94"
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] == digest


def test_templates_are_named_in_files_of_answers_as_ever():
    names = {n: digest([recorded(t, {})], SHORT) for n, t in prompt.TEMPLATES.items()}
    assert names == {
        "vicuna_v1": "f2b5d696b9d556ea",
        "short": "13c1979db0a50a95",
        "llava_v1": "678712c66c739282",
        "plain": "0d46b712dd4a9cc0",
        "llama-2-chat": "56b81db7656b8c36",
        "llama-3": "5965ad50b887a516",
        "chatml": "4e48436fe936d538",
    }
