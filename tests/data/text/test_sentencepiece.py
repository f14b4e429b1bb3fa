"""SentencePiece's tokenizer.model: its own ids on arbitrary text, and the tokens beside it.

The real model of Llama 2 lies outside the project, with the test videos; a small one is trained.
"""

import io
import json
import logging
import pickle
import random
from pathlib import Path

import pytest
import sentencepiece

from rvllm_jax.data.text import prompt, tokenizer
from rvllm_jax.data.text.tokenizer_config import TokenizerError
from rvllm_jax.types import Turn

LLAMA = Path(__file__).parents[4] / "shared" / "data" / "tokenizer" / "tokenizer.model"
# Ranges of characters: ASCII, spaces, controls, Latin, combining, wide, emoji, private, the rest.
RANGES = [
    *((0x20, 0x7F), (0x20, 0x21), (0x00, 0x20), (0x7F, 0x250), (0x300, 0x370), (0x400, 0x600)),
    *((0x900, 0xE00), (0x2000, 0x2070), (0x3040, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0x10000)),
    *((0x1F1E6, 0x1F200), (0x1F300, 0x1FAFF), (0xE0020, 0xE0080), (0x10000, 0x110000)),
]
PARTS = [
    *("the", " video", "Answer", "ing", "</s>", "<s>", "<unk>", "<0x0A>", "\n", "\n\n", "\t", "  "),
    *(" " * 17, "\r\n", "\u2581", "\u2581\u2581", "\u200d", "\ufe0f", "\xe9", "e\u0301", "\0"),
    *("\ufeff", "1234", "...", "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u6f22"),
]


def strings(count: int, seed: int = 0):
    """Random texts: of one range, of many, of words; one in a hundred is long."""
    rng = random.Random(seed)
    for number in range(count):
        length = rng.randrange(2000, 6000) if number % 100 == 99 else rng.randrange(40)
        ranges = [rng.choice(RANGES)] if number % 3 == 0 else RANGES
        if number % 3 == 1:
            yield "".join(rng.choice(PARTS) for _ in range(length))
        else:
            yield "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(length))


def check(loaded, reference, texts):
    for text in texts:
        ids = loaded.encode(text, opens=True)
        assert ids == reference.encode(text), repr(text)
        assert not {loaded.bos_id, loaded.eos_id} & set(ids), repr(text)
        inside = loaded.encode(text)
        # SentencePiece writes its sign for a space as a space: nothing else is lost.
        assert loaded.decode(inside) == text.replace("\u2581", " "), repr(text)
        assert reference.decode(ids) == text.replace("\u2581", " "), repr(text)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The folder of a model trained as Llama's was."""
    words = "the video shows a red circle and two blue squares moving left then right".split()
    rng, written = random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(rng.choices(words, k=12)) for _ in range(300)),
        model_writer=written, model_type="bpe", vocab_size=380, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("small")
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return folder


def processor(folder: Path):
    data = (folder / "tokenizer.model").read_bytes()
    return sentencepiece.SentencePieceProcessor(model_proto=data)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    if not LLAMA.is_file():
        pytest.skip(f"{LLAMA} is absent: the real SentencePiece model of Llama 2")
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(LLAMA.read_bytes())
    return folder


def test_a_small_model_gives_sentencepiece_s_ids(small):
    check(tokenizer.load(small), processor(small), strings(2000))


def test_llama_2_gives_sentencepiece_s_ids_on_3000_strings(llama):
    loaded = tokenizer.load(llama)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (1, 2, 2, 32000)
    check(loaded, processor(llama), strings(3000))


@pytest.mark.slow
def test_llama_2_gives_sentencepiece_s_ids_on_50000_strings(llama):
    check(tokenizer.load(llama), processor(llama), strings(50_000, seed=1))


def test_parts_join_to_the_whole_text_s_ids(llama):
    loaded, reference = tokenizer.load(llama), processor(llama)
    first, rest = "A chat. USER:", [" What is it?", " ASSISTANT:", " A  red one.", "\n\n x"]
    whole = loaded.encode(first, opens=True) + sum((loaded.encode(part) for part in rest), [])
    assert whole == reference.encode("".join([first, *rest]))


def test_a_model_that_strips_spaces_gives_its_ids_and_keeps_them_inside(tmp_path):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the red one is here", "two blue ones"] * 50),
        model_writer=written, model_type="unigram", vocab_size=22, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    loaded, reference = tokenizer.load(tmp_path), processor(tmp_path)
    for text in strings(500):
        assert loaded.encode(text, opens=True) == reference.encode(text)
    parts = loaded.encode("the red", opens=True) + loaded.encode(" one")
    assert parts == reference.encode("the red one")


def test_save_load_and_pickle_keep_everything(small, tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "tokenizer.model").write_bytes((small / "tokenizer.model").read_bytes())
    (tmp_path / "from" / "added_tokens.json").write_text('{"<pad>": 380, "<video>": 382}')
    config = {"pad_token": "<pad>", "chat_template": "{{ messages }}"}
    (tmp_path / "from" / "tokenizer_config.json").write_text(json.dumps(config))
    first = tokenizer.load(tmp_path / "from")
    assert (first.pad_id, first.eos_id, first.vocab_size) == (380, 2, 383)
    assert first.special_ids == {"<s>": 1, "</s>": 2, "<pad>": 380, "<video>": 382}
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "tokenizer.json").write_text("{}")  # of another one
    first.save(tmp_path / "to")
    text = "the <video> and <pad></s> red"
    for other in (tokenizer.load(tmp_path / "to"), pickle.loads(pickle.dumps(first))):
        assert other.fingerprint == first.fingerprint
        assert other.encode(text) == first.encode(text)
        assert (other.pad_id, other.chat_template) == (380, "{{ messages }}")
    assert first.fingerprint != tokenizer.load(small).fingerprint


def test_llama_2_s_later_turns_are_sequences_as_meta_s_code_has_them(small):
    loaded, reference = tokenizer.load(small), processor(small)
    template = prompt.find_template("llama-2-chat", loaded)
    turns = [Turn("What is red?", "The circle"), Turn("Which  one?", "two </s> blue")]
    ids, _ = prompt.segment_ids(loaded, template, turns)
    later = ids[len(prompt.segment_ids(loaded, template, turns[:1])[0]) :]
    whole = "[INST] Which  one? [/INST] two </s> blue "
    assert later == [1, *reference.encode(whole), 2]


def test_added_tokens_are_found_in_texts_unless_they_are_special(small, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((small / "tokenizer.model").read_bytes())
    added = {
        "380": {"content": "<im>", "special": True},
        "381": {"content": "<v>", "special": False},
        "382": {"content": "<v><v>", "special": False, "lstrip": True, "rstrip": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    loaded, reference = tokenizer.load(tmp_path), processor(small)
    ids = loaded.encode("red<v> one <v><v>  two <im>", opens=True)
    inside = tokenizer.load(small)
    own = [reference.encode("red"), [381], inside.encode(" one"), [382], inside.encode("two <im>")]
    assert ids == sum(own, [])
    assert loaded.decode(ids) == " red<v> one<v><v>two <im>"
    assert loaded.decode([380, 10**6, -5, *inside.encode(" x")]) == "<im> x"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("added_tokens.json", {"<pad>": 5}, r"'<pad>' has the id 5, which tokenizer\.model gives"),
        ("added_tokens.json", {"<pad>": -1}, r"added_tokens\.json.*'<pad>' has the id -1"),
        ("added_tokens.json", {"<a>": 380, "<b>": 380}, "'<a>' and '<b>' both have the id 380"),
        ("added_tokens.json", [1], "holds no JSON object but a list"),
        ("tokenizer_config.json", {"eos_token": "<end>"}, r"eos is '<end>'.*set eos_token"),
        ("tokenizer_config.json", {"bos_token": "<go>"}, r"'<go>' is not in the vocabulary"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(small, tmp_path, name, content, says):
    (tmp_path / "tokenizer.model").write_bytes((small / "tokenizer.model").read_bytes())
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=says):
        tokenizer.load(tmp_path)


def test_a_damaged_model_is_refused_by_its_path(small, tmp_path):
    whole = (small / "tokenizer.model").read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n"
    for data, says in (
        (b"", "0 bytes"),
        (whole[:1000], "copy it again"),
        (pointer, "git lfs pull"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(TokenizerError, match=rf"tokenizer\.model: .*{says}"):
            tokenizer.load(tmp_path)


def test_a_conversion_that_gives_other_ids_is_told(small, tmp_path, caplog):
    tokenizer.train(["the red circle"] * 9, 300).save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((small / "tokenizer.model").read_bytes())
    with caplog.at_level(logging.WARNING, logger="absl"):
        tokenizer.load(tmp_path)
    assert "tokenizer.json is used, but tokenizer.model gives other ids" in caplog.text
