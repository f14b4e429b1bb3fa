"""python -m rvllm_jax.convert: in, out, and in again."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.experiments.saved.describe import describe_weights, expected
from rvllm_jax.system.lock import LockError, locked
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.checkpoint_folder import CheckpointError
from rvllm_jax.training.resume import open_start
from rvllm_jax.training.stages import open_layout
from rvllm_jax.training.state import StatePlacement
from rvllm_jax.training.workdir import claim
from rvllm_jax.weights import load
from rvllm_jax.weights.open import open_weights
from rvllm_jax.weights.safetensors import WeightsError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(llama, joint, tmp_path_factory):
    """A working directory with a checkpoint of a decoder that started from `llama`."""
    workdir = tmp_path_factory.mktemp("run")
    config = joint()
    config.model.update(decoder=str(llama), weights=str(llama), random="(encoder|projector)/.*")
    config.mesh.update(data=8)
    recipe = resolve(config)
    claim(workdir, config.to_dict())
    model = build_model(recipe)
    placement = StatePlacement(model, recipe.stages, recipe.model.dtype, open_layout(recipe, model))
    start = open_start(recipe.model.weights, recipe.model.random, model)
    arrays = placement.draw(jax.random.key(0), start, functools.partial(load.load, start))
    arrays |= {"opt": {"moment": np.ones(3)}}
    checkpoints = Checkpoints(workdir)
    checkpoints.save(7, arrays, {"position": {}})
    checkpoints.close()
    return workdir, arrays["params"] | arrays["stats"]


def read(folder):
    return {path: entry.read() for path, entry in open_weights(folder).entries.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        assert ours[path].dtype == array.dtype, path
        np.testing.assert_array_equal(ours[path], array, path)


def test_a_folder_goes_in_and_out_bit_for_bit(llama, tmp_path):
    with locked(tmp_path / "ours"), pytest.raises(LockError, match="ours: is being written by"):
        convert([str(llama)], tmp_path / "ours")
    convert([str(llama)], tmp_path / "ours")
    assert_same(read(tmp_path / "ours"), read(llama))
    assert (tmp_path / "ours" / "tokenizer.json").is_file()
    weights = open_weights(tmp_path / "ours")
    assert load.check(weights.entries, expected(describe_weights(weights), weights.path)) == []
    convert([str(tmp_path / "ours")], tmp_path / "theirs", form="transformers")
    assert_same(read(tmp_path / "theirs"), read(llama))


def test_a_run_starts_from_a_folder_and_goes_out_whole(run, llama, tmp_path):
    workdir, arrays = run
    for path, array in read(llama).items():
        np.testing.assert_array_equal(arrays[path], array.astype(np.float32), path)
    told = convert([str(workdir)], tmp_path / "whole")
    assert told[0].endswith("the checkpoint, step 7")
    assert_same(read(tmp_path / "whole"), {path: np.asarray(x) for path, x in arrays.items()})
    model = build_model(
        resolve(json.loads((tmp_path / "whole" / "model.json").read_text())["recipe"])
    )
    assert open_start(str(tmp_path / "whole"), "", model).keys() == arrays.keys()


def test_transformers_loads_the_decoder_of_a_run(run, llama, tmp_path):
    import transformers

    told = convert([str(run[0])], tmp_path / "decoder", form="transformers")
    assert "left out: encoder, projector" in told[-2]
    assert "opens it: llama, 2 layers of width 32" in "\n".join(told)
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama).float().state_dict()
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "decoder").state_dict()
    assert theirs.keys() == again.keys()
    for name, tensor in theirs.items():
        assert (again[name] == tensor).all(), name


def test_sizes_that_transformers_refuses_do_not_leave_unnoticed(run, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")

    def refuse(folder):
        raise ValueError("hidden_size is no multiple of the heads")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(WeightsError, match="does not open what was written: hidden_size"):
        convert([str(run[0])], tmp_path / "decoder", form="transformers")


def test_the_vocabulary_grows_when_asked(llama, tmp_path):
    told = convert([str(llama)], tmp_path / "ours", vocab_size=520)
    assert "vocabulary: 512 -> 520 tokens" in "\n".join(told)
    before, after = read(llama), read(tmp_path / "ours")
    for path, axis in (("decoder/embed/embedding", 0), ("decoder/head/kernel", 1)):
        old, new = np.split(after[path].astype(np.float64), [512], axis)
        np.testing.assert_array_equal(old, before[path])
        mean = np.broadcast_to(before[path].astype(np.float64).mean(axis, keepdims=True), new.shape)
        np.testing.assert_allclose(new, mean, rtol=2**-7, atol=1e-4)
    with pytest.raises(WeightsError, match="tokens would go"):
        convert([str(llama)], tmp_path / "less", vocab_size=500)
    assert not (tmp_path / "less").exists()


@pytest.fixture
def llava_and_eyes(llama, tmp_path):
    """Folders of a LLaVA whose projector takes 1024 features, and of a ResNet that makes 8."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    tensors = load_file(llama / "model.safetensors")
    for n, shape in ((0, (32, 1024)), (2, (32, 32))):
        tensors[f"model.mm_projector.{n}.weight"] = torch.zeros(shape)
        tensors[f"model.mm_projector.{n}.bias"] = torch.zeros(32)
    llava = tmp_path / "llava"
    llava.mkdir()
    save_file(tensors, llava / "model.safetensors")
    values = json.loads((llama / "config.json").read_text())
    values["architectures"] = ["LlavaLlamaForCausalLM"]
    (llava / "config.json").write_text(json.dumps(values))
    sizes = dict(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).save_pretrained(tmp_path / "eyes")
    return [str(llava), str(tmp_path / "eyes")]


def test_a_projector_of_another_encoder_is_refused_until_left_out(llava_and_eyes, tmp_path):
    with pytest.raises(WeightsError, match=r"1024 features of CLIP.* has 8.*--leave_out='proj"):
        convert(llava_and_eyes, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = convert(llava_and_eyes, tmp_path / "out", leave_out="projector/.*")
    assert [
        x for x in told if x.startswith("left out: projector/linear_1/bias, projector/linear_1")
    ]
    theirs = read(llava_and_eyes[0]) | read(llava_and_eyes[1])
    assert told[0].endswith("arrays of decoder, projector")
    kept = {path: x for path, x in theirs.items() if not path.startswith("projector")}
    assert_same(read(tmp_path / "out"), kept)
    convert([str(tmp_path / "out")], tmp_path / "again")  # its model.json knows what is in it
    assert_same(read(tmp_path / "again"), kept)


def test_parts_are_left_out_of_a_run_whole_or_not_at_all(run, tmp_path):
    for regex, message in (
        ("project", "matches no path; there are those of decoder, encoder, projector"),
        ("decoder/head/.*", "leave out all of the decoder"),
        ("(", "is no regex"),
        (".*", "leaves nothing"),
    ):
        with pytest.raises(WeightsError, match=message):
            convert([str(run[0])], tmp_path / "out", leave_out=regex)
        assert not (tmp_path / "out").exists()
    convert([str(run[0])], tmp_path / "out", leave_out="decoder/.*")
    weights = open_weights(tmp_path / "out")
    assert load.check(weights.entries, expected(describe_weights(weights), weights.path)) == []
    assert {path.partition("/")[0] for path in weights.entries} == {"encoder", "projector"}


def test_what_does_not_fit_leaves_nothing_behind(llama, run, joint, tmp_path):
    workdir, _ = run
    for sources, error, message in (
        ([str(llama), str(llama)], WeightsError, "leave one of them out"),
        ([str(workdir), str(llama)], WeightsError, "whole model by itself"),
        ([str(tmp_path / "absent")], WeightsError, "is not there"),
    ):
        with pytest.raises(error, match=message):
            convert(sources, tmp_path / "out")
    with pytest.raises(WeightsError, match="no best checkpoint of stage 'joint'.*--best"):
        convert([str(llama)], tmp_path / "out", best="joint")
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        convert([str(workdir)], tmp_path / "out", best="joint")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    values = json.loads((llama / "config.json").read_text())
    for change, error, message in (
        ({"hidden_size": None}, WeightsError, "hidden_size"),
        ({"num_hidden_layers": 3}, WeightsError, r"missing: model\.layers\.2\.self_attn"),
        ({"hidden_act": "gelu"}, WeightsError, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, WeightsError, "'yarn'"),
    ):
        kept = {k: v for k, v in (values | change).items() if v is not None}
        (bad / "config.json").write_text(json.dumps(kept))
        with pytest.raises(error, match=message):
            convert([str(bad)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(WeightsError, match=r"(?s)missing: encoder/.*config\.model\.random='proj"):
        open_start(str(llama), "projector/.*", build_model(resolve(joint())))


def test_the_command_tells_and_refuses(llama, tmp_path):
    def call(*arguments):
        command = [sys.executable, "-m", "rvllm_jax.convert", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = call(f"--source={llama}", f"--out={tmp_path / 'ours'}")
    assert done.returncode == 0, done.stderr
    assert f"written: {tmp_path / 'ours'}" in done.stdout
    done = call(f"--source={llama}", f"--out={tmp_path / 'ours'}")
    assert done.returncode == 1 and "is not an empty folder" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    done = call(f"--source={llama}", f"--out={tmp_path / 'file' / 'ours'}")
    assert done.returncode == 1 and done.stderr.startswith("refused: "), done.stderr
    assert "ours: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
