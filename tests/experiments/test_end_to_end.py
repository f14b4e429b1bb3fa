"""From published folders to answers about real videos and back out, as the README tells it.

A decoder as transformers saves it (random weights, SmolLM2's shape, two layers) with a real
SentencePiece tokenizer, and a ResNet-18 by torchvision's names.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from rvllm_jax.config.check import resolve
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.experiments.saved.open import open_model
from rvllm_jax.experiments.train import train
from rvllm_jax.generation.engine import Engine
from rvllm_jax.training.workdir import claim
from rvllm_jax.types import PREFIX
from rvllm_jax.weights.open import open_weights

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
VIDEOS, TOKENIZER = DATA / "real_videos", DATA / "tokenizer" / "tokenizer.model"
pytestmark = pytest.mark.skipif(
    not (VIDEOS.is_dir() and TOKENIZER.is_file()),
    reason=f"{VIDEOS} and {TOKENIZER}: the real clips or the real tokenizer are not there",
)
OVERRIDES = {
    **{"schedule": "visual,joint", "model.encoder": "resnet18", "model.tokens": "global"},
    **{"model.random": "projector/.*", "data.crop": 32, "data.short_side": 36},
    **{f"stages.{stage}.steps": 3 for stage in ("visual", "joint")},
    **{f"stages.{stage}.warmup": 1 for stage in ("visual", "joint")},
    **{f"stages.{stage}.batch": 8 for stage in ("visual", "joint")},
    **{"evaluation.max_new": 4, "evaluation.controls": False, "evaluation.batch": 8},
    **{"evaluation.clips": 8, "evaluation.probe_videos": 1, "evaluation.train_videos": 12},
}


@pytest.fixture
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of the decoder and the file of the ResNet."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=512,
        rope_theta=1e5, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "smollm2")
    shutil.copyfile(TOKENIZER, folder / "smollm2" / "tokenizer.model")
    save_file(resnet18(), folder / "resnet18.safetensors")
    return folder / "smollm2", folder / "resnet18.safetensors"


def resnet18() -> dict[str, np.ndarray]:
    """Random weights by torchvision's names, what training leaves there and we ignore included."""
    rng, tensors = np.random.default_rng(0), {}

    def layer(conv, norm, inputs, outputs, size):
        kernel = rng.normal(size=(outputs, inputs, size, size)) * (2 / outputs / size**2) ** 0.5
        tensors[f"{conv}.weight"] = kernel.astype(np.float32)
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            tensors[f"{norm}.{name}"] = np.full(outputs, value, np.float32)
        tensors[f"{norm}.num_batches_tracked"] = np.array(0)

    layer("conv1", "bn1", 3, 64, 7)
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in ("0", "1"):
            name = f"layer{stage}.{block}"
            layer(f"{name}.conv1", f"{name}.bn1", inputs, width, 3)
            layer(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            if inputs != width:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", inputs, width, 1)
            inputs = width
    return tensors | {"fc.weight": np.zeros((1000, 512), np.float32)}


def assert_trained(run: Path, start: Path) -> None:
    """What the two stages were to train has moved away from the weights that were converted."""
    before = {path: entry.read() for path, entry in open_weights(start).entries.items()}
    after = {path: entry.read() for path, entry in open_weights(run).entries.items()}
    new = {path.partition("/")[0] for path in after.keys() - before.keys()}
    assert before.keys() <= after.keys() and new == {"projector"}
    for path in ("encoder/stem/conv/kernel", "decoder/layers/mlp/up/kernel"):
        moved = np.abs(after[path] - before[path]).max()
        assert 0 < moved < 0.1, (path, moved)  # from there, and not from a new start


def assert_transformers_gives_our_logits(folder: Path, run: Path) -> None:
    opened = open_model(run)
    ids = opened.tokenizer.encode(
        "What is the child holding?  An open book. \U0001f4d6", opens=True
    )
    tokens, decoder = jnp.array([ids]), opened.module.decoder
    row = jnp.arange(len(ids))[None]
    hidden, _ = decoder(decoder.embed(tokens), row, jnp.full_like(row, PREFIX))
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits.numpy()
    assert np.ptp(wanted) > 1
    np.testing.assert_allclose(decoder.logits(hidden), wanted, atol=1e-4)
    sentencepiece = (folder / "tokenizer.model").read_bytes()
    assert sentencepiece == TOKENIZER.read_bytes()  # it goes out with the weights it belongs to


@pytest.mark.slow
def test_weights_go_in_are_trained_on_real_videos_answer_and_go_out(
    published, joint, tmp_path, quick_compilation
):
    start, run = tmp_path / "start", tmp_path / "run"
    convert([str(path) for path in published], start)
    records = json.loads((VIDEOS / "llava.json").read_text())[:2]
    (tmp_path / "two.json").write_text(json.dumps(records))
    config = joint()
    config.update_from_flattened_dict(
        OVERRIDES
        | {f"model.{key}": str(start) for key in ("decoder", "weights")}
        | {"tokenizer.folder": str(start), "data.videos": str(VIDEOS)}
        | {"data.conversations": str(tmp_path / "two.json"), "data.store": str(tmp_path / "store")}
        | {"evaluation.clips": 2}
    )
    claim(run, config.to_dict())
    experiment = Experiment.open(resolve(config), run)
    train(experiment)
    convert([str(run)], tmp_path / "whole")
    assert_trained(tmp_path / "whole", start)
    clip = experiment.dataset(experiment.source.splits["train"]).load(0, (), None)
    said = []
    for path in (run, tmp_path / "whole"):
        opened = open_model(path)
        session = Engine(opened.module, opened.tokenizer, opened.template).session(
            clip.frames, clip.frame_mask
        )
        said.append([session.ask(q, max_new=4) for q in ("What is it?", "And where?")])
    assert said[0] == said[1] and all(said[0])
    convert([str(run)], tmp_path / "decoder", form="transformers")
    assert_transformers_gives_our_logits(tmp_path / "decoder", run)


def command(name: str, *arguments: str) -> str:
    """What `python -m rvllm_jax.NAME` prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"rvllm_jax.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.mark.slow
def test_the_documented_commands(published, tmp_path):
    start, run, whole = (tmp_path / name for name in ("start", "run", "whole"))
    printed = command("convert", f"--source={','.join(map(str, published))}", f"--out={start}")
    assert "11 arrays of decoder" in printed and "100 arrays of encoder" in printed
    printed = command(
        "main",
        "--config=configs/joint.py",
        f"--config.data.videos={VIDEOS}",
        f"--config.data.conversations={VIDEOS}/llava.json",
        f"--config.data.store={tmp_path / 'store'}",
        f"--config.model.decoder={start}",
        f"--config.model.weights={start}",
        f"--config.tokenizer.folder={start}",
        *(f"--config.{key}={value}" for key, value in OVERRIDES.items()),
        f"--workdir={run}",
    )
    assert "| all" in printed and (run / "report" / "samples.png").is_file()
    ask = (str(VIDEOS / "panda.mp4"), "--question=What animal is it?", "--max_new=4")
    answer = command("chat", *ask, f"--model={run}")
    assert answer.strip()
    assert f"written: {whole}" in command("convert", f"--source={run}", f"--out={whole}")
    assert command("chat", *ask, f"--model={whole}") == answer
    assert_trained(whole, start)
    out = tmp_path / "decoder"
    printed = command("convert", f"--source={run}", f"--out={out}", "--form=transformers")
    assert "left out: encoder, projector" in printed
    assert_transformers_gives_our_logits(out, run)
