"""The folder's own Jinja template: what transformers makes of it, and what is refused."""

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from rvllm_jax.data.text import prompt as chat
from rvllm_jax.data.text import tokenizer
from rvllm_jax.data.text.template import TEMPLATES, ChatTemplateError
from rvllm_jax.types import Turn

TURNS = [Turn("What is it?", "A red one."), Turn("Why?", "Paint."), Turn("How?", "So")]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LISTS = (  # contents are lists of parts, as llava-hf's; answers are marked for training
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ raise_exception('a list') }}{% endif %}"
    "{% for part in message['content'] %}{% generation %}{{ part['text'] }}{% endgeneration %}"
    "{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Llama 3's: line breaks stay together, whatever follows, so that an answer may be tokenized apart.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
JINJA = {"chatml": CHATML, "llama-3": LLAMA_3, "llama-2-chat": LLAMA_2, "lists": LISTS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(template) -> the folder of a tokenizer that brings it and knows the tokens."""
    trained = tokenizer.train(["What is it? A red one.", "user assistant system\n\n"] * 9, 400)

    def folder(template):
        path = tmp_path_factory.mktemp("own")
        trained.save(path)
        inner = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        inner.add_special_tokens(SPECIALS)
        inner.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
        inner.save(str(path / "tokenizer.json"))
        (path / "chat_template.jinja").write_text(template)
        return path

    return folder


def ours(tk, template, turns):
    before, after = chat.prefix_ids(tk, template)
    return before, after + chat.segment_ids(tk, template, turns)[0]


def theirs(path, wrap, system=""):
    """transformers' ids before and behind the video, of the dialogue and of its first question."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    messages = [{"role": "system", "content": system}] if system else []
    for number, turn in enumerate(TURNS):
        question = "VIDEO\n" * (number == 0) + turn.question
        messages += [{"role": "user", "content": wrap(question)}]
        messages += [{"role": "assistant", "content": wrap(turn.answer)}]
    asked = messages[: 2 if system else 1]
    found = []
    for own, prompt in ((messages, False), (asked, True)):
        text = reference.apply_chat_template(own, tokenize=False, add_generation_prompt=prompt)
        parts = text.split("VIDEO")
        found.append([reference(t, add_special_tokens=False)["input_ids"] for t in parts])
    return found


@pytest.mark.parametrize("name", JINJA)
def test_the_ids_are_those_of_transformers(folder, name):
    path = folder(JINJA[name])
    tk = tokenizer.load(path)
    template = chat.find_template("folder", tk)
    before, behind = ours(tk, template, TURNS)
    wrap = (lambda text: [{"type": "text", "text": text}]) if name == "lists" else str
    whole, asked = theirs(path, wrap)
    assert before == whole[0] and behind == whole[1][: len(behind)]
    assert tk.decode(whole[1][len(behind) :]) in ("", "\n")
    after = chat.prefix_ids(tk, template)[1]
    assert [before, after + chat.question_ids(tk, template, TURNS[0].question)] == asked


@pytest.mark.parametrize("name", ["chatml", "llama-3", "llama-2-chat"])
def test_a_named_template_is_what_transformers_makes_of_the_model_s_own(folder, name):
    """Given the system message that LLaVA gives it."""
    path = folder(JINJA[name])
    tk, template = tokenizer.load(path), TEMPLATES[name]
    opening, closing = {
        "chatml": ("system\n", "<|im_end|>"),
        "llama-3": ("\n\n", "<|eot_id|>"),
        "llama-2-chat": ("<<SYS>>\n", "\n<</SYS>>"),
    }[name]
    system = template.before.partition(opening)[2].partition(closing)[0]
    before, behind = ours(tk, chat.find_template(name, tk), TURNS)
    (whole, asked), after = theirs(path, str, system), chat.prefix_ids(tk, template)[1]
    assert before == whole[0] and behind == whole[1][: len(behind)]
    assert [before, after + chat.question_ids(tk, template, TURNS[0].question)] == asked


def test_special_tokens_in_a_question_stay_text(folder):
    tk = tokenizer.load(folder(CHATML))
    template = chat.find_template("folder", tk)
    ids = chat.question_ids(tk, template, "a<|im_end|></s>")
    assert ids.count(tk.special_ids["<|im_end|>"]) == 1 and tk.eos_id not in ids


def test_the_template_travels_with_the_tokenizer(folder, tmp_path):
    first = tokenizer.load(folder(LLAMA_3))
    first.save(tmp_path)
    again = tokenizer.load(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert chat.find_template("folder", again) == chat.find_template("folder", first)


TURN = "{{ message['role'] + ': ' + message['content'] + eos_token }}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}", "is no Jinja template"),
        ("{{ raise_exception('never') }}", "fails: TemplateError: never"),
        ("{{ ''.__class__.__mro__ }}{{ messages.append(1) }}", "fails: SecurityError"),
        ("You are a bot.", "no place for the video"),
        ("{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}", "no place for the video"),
        ("{% for m in messages %}{{ m['content'] }}</s>{{ m['content'] }}{% endfor %}", "twice"),
        ("{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}", "order of the turns"),
        (
            "{% for message in messages %}{{ loop.index }}" + TURN + "{% endfor %}",
            "writes turns differently by their number",
        ),
        (
            "{% for message in messages %}" + TURN + "{% endfor %}"
            "{% if add_generation_prompt %}Bot: {% endif %}",
            "does not ask .*would differ",
        ),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "ends answers by no special"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(folder, template, says):
    with pytest.raises(ChatTemplateError, match=says):
        chat.find_template("folder", tokenizer.load(folder(template)))
