"""The tokenizer: lossless, deterministic, and deaf to special tokens written in a text."""

import json
import pickle
import random
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rvllm_jax.data.text import tokenizer
from rvllm_jax.data.text.tokenizer_config import TokenizerError

TEXTS = ["USER: What colour is it? ASSISTANT:", " The circle is red, then </s><s> <0x41>."] * 20
HARD = [
    "",
    " ",
    "  two before, runs   of    spaces  ",
    "\ttab\n\n\r\nlines \n x",
    "\0\x01\x07\x1b\x7f\x80\xad",
    "<s>",
    "a</s>b<pad><unk> <s></s>",
    "<0x41><0x0A> <0xE2><0x96>",
    "▁ ▁a▁▁ Ġa ĠĠ",
    "🙂 👩‍👩‍👧 \U0001f1e9\U0001f1ea",
    "漢字 кириллица ع हिन्दी é é",
    "\ufeff\ufffd\u2028\u00a0\u3000\U0010ffff",
]


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(TEXTS, 500)


def test_any_text_round_trips_and_never_gives_a_special_token(trained):
    rng = random.Random(0)
    alphabets = [(32, 33), (60, 63), (32, 127), (0, 0x3000), (0xE000, 0x110000)]
    made = [
        "".join(chr(rng.randrange(*rng.choice(alphabets))) for _ in range(rng.randrange(20)))
        for _ in range(2000)
    ]
    for text in HARD + made + TEXTS:
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert not {0, 1, 2} & set(ids), text
        assert all(0 <= i < trained.vocab_size for i in ids)


def test_parts_join_to_the_text(trained):
    parts = ["USER: Is it", " red?", " ASSISTANT:", " yes", "\n", "  x"]
    ids = sum((trained.encode(part) for part in parts), [])
    assert trained.decode(ids) == "".join(parts)


def test_it_learns_words_and_keeps_the_special_ids(trained):
    assert (trained.pad_id, trained.bos_id, trained.eos_id) == (0, 1, 2)
    assert trained.decode([0, 1, *trained.encode("a b"), 2, 0]) == "a b"
    assert len(trained.encode(" circle")) == 1
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0]) / 3
    assert trained.vocab_size <= 500


def test_training_is_deterministic_across_processes(trained, tmp_path):
    command = (
        "import sys; from rvllm_jax.data.text import tokenizer;"
        f"tokenizer.train({TEXTS!r}, 500).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "other")], check=True)
    trained.save(tmp_path / "this")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "this" / name).read_bytes()


def test_an_alphabet_larger_than_the_vocabulary_falls_back_to_bytes(tmp_path):
    text = "".join(chr(c) for c in range(0x4E00, 0x4F00))
    small = tokenizer.train([text, "aaaa"], 300)
    assert small.vocab_size <= 300
    assert small.decode(small.encode(text + "a")) == text + "a"
    small.save(tmp_path / "1")
    tokenizer.train([text, "aaaa"], 300).save(tmp_path / "2")
    written = [(tmp_path / n / "tokenizer.json").read_bytes() for n in "12"]
    assert written[0] == written[1]


def test_save_load_and_pickle_keep_everything(trained, tmp_path):
    trained.save(tmp_path)
    for other in (tokenizer.load(tmp_path), pickle.loads(pickle.dumps(trained))):
        assert other.fingerprint == trained.fingerprint
        assert [other.encode(t) for t in HARD] == [trained.encode(t) for t in HARD]
        assert (other.pad_id, other.bos_id, other.eos_id) == (0, 1, 2)
    assert tokenizer.train(TEXTS, 300).fingerprint != trained.fingerprint


def test_decode_of_broken_bytes_and_unknown_ids_does_not_raise(trained):
    lone = trained.encode("🙂")[:1]
    assert trained.decode(lone) == "�"
    assert trained.decode([10**6, *trained.encode("a")]) == "a"


def _llama_folder(folder, *, metaspace: bool):
    """A folder as Llama's checkpoints have it: a space before every text, spaces become '▁'."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abUS:"]
    merges = [("▁", "a"), ("▁a", "b"), ("a", "b")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    if metaspace:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir()
    inner.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return inner


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, (2,)),
        ({"config.json": [1, 2, 5]}, (2, 1, 5)),
        ({"config.json": [1, 2, 5], "generation_config.json": [2, 7]}, (2, 7)),
        ({"generation_config.json": 7}, (2,)),  # another tokenizer's
    ],
)
def test_a_model_s_files_list_what_ends_an_answer(tmp_path, files, wanted):
    _llama_folder(tmp_path / "llama", metaspace=True)
    for name, ids in files.items():
        (tmp_path / "llama" / name).write_text(json.dumps({"eos_token_id": ids}))
    loaded = tokenizer.load(tmp_path / "llama")
    assert loaded.stop_ids == pickle.loads(pickle.dumps(loaded)).stop_ids == wanted
    loaded.save(tmp_path / "kept")
    assert tokenizer.load(tmp_path / "kept").stop_ids == wanted


@pytest.mark.parametrize("given", ["2", [[2]], {}, True, [2, None], [2, -1], 2.0])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_what_is_no_id_cannot_end_an_answer(tmp_path, name, given):
    _llama_folder(tmp_path / "llama", metaspace=True)
    (tmp_path / "llama" / name).write_text(json.dumps({"eos_token_id": given}))
    with pytest.raises(TokenizerError, match=f"{name}: eos_token_id=.*expected an id"):
        tokenizer.load(tmp_path / "llama")


@pytest.mark.parametrize(
    ("name", "key"), [("config.json", "text_config"), ("model.json", "decoder")]
)
def test_a_broken_part_of_a_model_s_files_is_refused(tmp_path, name, key):
    _llama_folder(tmp_path / "llama", metaspace=True)
    (tmp_path / "llama" / name).write_text(json.dumps({key: [1]}))
    with pytest.raises(TokenizerError, match=rf"{name}: {key}=\[1\], expected an object"):
        tokenizer.load(tmp_path / "llama")


@pytest.mark.parametrize("metaspace", [False, True])
def test_a_llama_folder_gives_the_whole_text_s_ids_when_encoded_in_parts(tmp_path, metaspace):
    reference = _llama_folder(tmp_path / "llama", metaspace=metaspace)
    loaded = tokenizer.load(tmp_path / "llama")
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, 2)
    whole = reference.encode("ab U: ab ab", add_special_tokens=False).ids
    assert loaded.encode("ab U:", opens=True) + loaded.encode(" ab ab") == whole
    for text in (" ab  ab", "ab", "\n a", "</s>é"):
        ids = loaded.encode(text)
        assert loaded.decode(ids) == text
        assert not {0, 1, 2} & set(ids)


@pytest.mark.parametrize("count", [3000, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("metaspace", [False, True])
def test_a_llama_folder_gives_the_library_s_ids_on_random_strings(tmp_path, metaspace, count):
    reference = _llama_folder(tmp_path / "llama", metaspace=metaspace)
    reference.encode_special_tokens = True
    loaded, rng = tokenizer.load(tmp_path / "llama"), random.Random(0)
    characters = "ab US:\u2581\n\t\0\u6f22\U0001f642</s>"
    for number in range(count):
        text = "".join(rng.choices(characters, k=rng.randrange(12)))
        if number % 2:  # any character but the surrogates
            text += "".join(chr(rng.randrange(0xE000, 0x110000)) + text for _ in range(3))
            text += "".join(chr(rng.randrange(0xD800)) for _ in range(rng.randrange(100)))
        ids = loaded.encode(text, opens=True)
        assert ids == reference.encode(text, add_special_tokens=False).ids, repr(text)
        assert loaded.decode(loaded.encode(text)) == text.replace("\u2581", " ")


def test_special_tokens_are_found_in_special_tokens_map(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(TokenizerError, match="eos_token"):
        tokenizer.load(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    loaded = tokenizer.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (None, 2, 2)


def test_folders_that_hold_no_tokenizer_are_refused_by_name(tmp_path):
    with pytest.raises(TokenizerError, match="nowhere: no such folder"):
        tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"json or a tokenizer\.model, found neither"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a whole SentencePiece"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer.load(tmp_path)


def test_a_start_of_text_token_outside_the_vocabulary_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "eos_token": "</s>"}')
    with pytest.raises(TokenizerError, match=r"'<bos>' is not in the vocabulary.*bos_token"):
        tokenizer.load(tmp_path)


def test_a_vocabulary_without_room_for_text_is_refused():
    with pytest.raises(TokenizerError, match="259 are special tokens and bytes"):
        tokenizer.train(TEXTS, 259)


def test_tokens_beside_a_tokenizer_json_are_added_as_transformers_does(trained, tmp_path):
    trained.save(tmp_path)
    size = trained.vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<video>": size, "<fill>": size + 1}))
    values = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": "<fill>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    loaded = tokenizer.load(tmp_path)
    assert (loaded.pad_id, loaded.vocab_size) == (size + 1, size + 2)
    ids = loaded.encode("a<video> <fill>")
    assert ids == [*trained.encode("a"), size, *trained.encode(" <fill>")]
    loaded.save(tmp_path / "again")
    assert tokenizer.load(tmp_path / "again").encode("a<video> <fill>") == ids
    for wrong in ({"<video>": size + 5}, {"</s>": 7}):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(TokenizerError, match=r"tokenizer\.json: gives the added token"):
            tokenizer.load(tmp_path)


def test_a_byte_level_space_stands_at_the_start_alone(trained, tmp_path):
    trained.save(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    bytes_of = {chr(b): b - 33 + 5 for b in range(33, 127)} | {"\u0120": 3, "\u0120a": 4}
    rules["model"] |= {
        "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2, **bytes_of},
        "byte_fallback": False,
    }
    rules["model"]["merges"] = [["\u0120", "a"]]
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    rules |= {"pre_tokenizer": level, "decoder": level}
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    loaded = tokenizer.load(tmp_path)
    assert loaded.encode("a a", opens=True) == [4, 4]
    assert loaded.encode("a a") == [bytes_of["a"], 4]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer_config.json", {"bos_token": 5}, "bos_token has 5, expected a token's text"),
        ("tokenizer_config.json", {"eos_token": {"content": [1]}}, "eos_token has"),
        ("tokenizer_config.json", {"chat_template": [1]}, "chat_template="),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "expected an object"),
        ("tokenizer_config.json", {"additional_special_tokens": 5}, "expected a list of tokens"),
        ("tokenizer_config.json", "[" * 100_000, "cannot be read as JSON"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)
def test_files_beside_a_tokenizer_that_cannot_be_are_refused(
    trained, tmp_path, name, content, says
):
    trained.save(tmp_path)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TokenizerError, match=f"{name}: .*{says}"):
        tokenizer.load(tmp_path)
