"""The ids by which texts start and end, on their way through `convert`."""

import json
import re
import shutil

import pytest

from rvllm_jax.data.text import tokenizer
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.weights.safetensors import WeightsError


@pytest.fixture
def talking(llama, tmp_path):
    """talking(vocab_size) -> a copy of `llama` with a tokenizer that begins and ends by 3 and 0."""

    def talking(vocab_size, **config):
        folder = tmp_path / f"talking {vocab_size}"
        shutil.copytree(llama, folder)
        values = json.loads((llama / "config.json").read_text()) | config
        values = {key: value for key, value in values.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(values))
        texts = ["the video shows a red circle and two blue squares " + chr(n) for n in range(999)]
        tokenizer.train(texts, vocab_size).save(folder)
        (folder / "tokenizer_config.json").write_text(
            '{"bos_token": "<0x00>", "eos_token": "<pad>"}'
        )
        return folder

    return talking


def test_the_tokenizer_goes_out_with_its_decoder_whatever_comes_first(talking, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path / "eyes")
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"))
    source = talking(400, **ids, pad_token_id=-1)  # as Llama's old files say none
    told = convert([str(tmp_path / "eyes"), str(source)], tmp_path / "ours")
    assert "tokenizer: 400 of the decoder's 512 tokens" in told
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (source / name).read_bytes()
    convert([str(tmp_path / "ours")], tmp_path / "theirs", form="transformers")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "theirs")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, 0, None)


def test_the_special_ids_of_a_config_stay(talking, tmp_path):
    source = talking(300, bos_token_id=3, eos_token_id=[7, 0], pad_token_id=9)
    told = convert([str(source)], tmp_path / "out", form="transformers")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [values[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [3, [7, 0], 9]
    assert told[-1] == f"written: {tmp_path / 'out'}" and "warning" not in "".join(told)


def test_the_tokenizers_ids_go_out_where_a_config_contradicts_them(talking, tmp_path):
    source, ids = talking(300, bos_token_id=3, eos_token_id=2), {"eos_token_id": [2]}
    (source / "generation_config.json").write_text(json.dumps(ids | {"top_k": 5}))
    told = convert([str(source)], tmp_path / "out", form="transformers")
    line = "warning: the tokenizer ends answers by id 0, config.json says 2: 0 is written"
    assert [x for x in told if "warning" in x] == [line]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == 0, name
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["top_k"] == 5


def set_ids(folder, name, ids):
    """Sets `ids` in a JSON file of `folder`, which may be absent."""
    file = folder / name
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | ids))


OUTSIDE, NO_ID = "special ids out of range.* 512 tokens", "expected an id"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(("eos_token_id", x, OUTSIDE) for x in (512, [0, 600], [2, -1])),
        *(("eos_token_id", x, NO_ID) for x in ("2", [[2]], {}, True, [0, None], 2.0)),
        *(("bos_token_id", x, NO_ID) for x in ("<s>", [1])),
        ("bos_token_id", 512, OUTSIDE),
        *(("pad_token_id", x, OUTSIDE) for x in (512, -2)),
    ],
)
def test_special_ids_that_are_none_or_outside_the_vocabulary_are_refused(
    talking, tmp_path, key, value, message
):
    for name in ("config.json", "generation_config.json"):
        source = tmp_path / name
        talking(300).rename(source)
        set_ids(source, name, {key: value})
        told = rf"{re.escape(str(source / name))}: {key}={re.escape(repr(value))}.*{message}"
        with pytest.raises(WeightsError, match=told):
            convert([str(source)], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_special_ids_of_a_folder_of_ours_are_checked_too(talking, tmp_path):
    convert([str(talking(300))], tmp_path / "ours")
    file = tmp_path / "ours" / "model.json"
    values = json.loads(file.read_text())
    values["decoder"]["eos_token_id"] = [0, 512]
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=rf"model\.json: eos_token_id=\[0, 512\]: {OUTSIDE}"):
        convert([str(tmp_path / "ours")], tmp_path / "out")


def test_a_special_id_that_the_grown_vocabulary_holds_is_taken(talking, tmp_path):
    source = talking(300)
    for name in ("config.json", "generation_config.json"):
        set_ids(source, name, {"eos_token_id": [0, 512]})
    convert([str(source)], tmp_path / "out", vocab_size=513)
    assert tokenizer.load(tmp_path / "out").stop_ids == (0, 512)


def test_a_generation_config_that_cannot_be_read_is_refused(talking, tmp_path):
    source = talking(300)
    (source / "generation_config.json").write_text('{"eos_token_id": ')
    with pytest.raises(WeightsError, match=r"generation_config\.json: cannot be read as JSON"):
        convert([str(source)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_tokens_than_the_decoder_is_refused(talking, tmp_path):
    source = str(talking(600))
    with pytest.raises(WeightsError, match=r"600 tokens, and the decoder 512.*--vocab_size=600"):
        convert([source], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert([source], tmp_path / "out", vocab_size=600)
