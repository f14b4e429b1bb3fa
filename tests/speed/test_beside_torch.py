"""The peer in torch is the same model: its loss and gradients are ours, its report is whole."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.data.batches.packing import pack_sequence, prefix
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import Batch, VisualLayout

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")

RESNET = ResNetConfig((1, 1, 1, 1), False, (8, 8, 12, 16))
LLAMA = LlamaConfig(61, 32, 2, 4, 4, 8, 48, context=64)
FRAMES, QUESTIONS, LENGTH = 2, 7, 4


@pytest.fixture(scope="module")
def beside():
    path = Path(__file__).with_name("beside_torch.py")
    spec = importlib.util.spec_from_file_location("beside_torch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed_rows() -> Batch:
    """Two clips with seven questions each."""
    rng, layout = np.random.default_rng(0), VisualLayout("global", FRAMES)
    head = prefix((), (), visual=layout.filled(FRAMES))
    rows = [
        pack_sequence(
            head,
            [(rng.integers(1, 61, LENGTH), np.ones(LENGTH)) for _ in range(QUESTIONS)],
            FRAMES + QUESTIONS * LENGTH,
        )
        for _ in range(2)
    ]
    return Batch(
        frames=rng.integers(0, 256, (2, FRAMES, 32, 32, 3), dtype=np.uint8),
        frame_mask=np.ones((2, FRAMES), bool),
        examples=np.arange(2),
        errors=np.zeros(2, np.int32),
        **{name: np.stack([row[name] for row in rows]) for name in rows[0]},
    )


def test_seven_packed_questions_give_the_gradients_of_seven_encoded_videos(
    beside, with_double_norms
):
    """With the batch's own statistics, which a video counted seven times over does not change."""
    with jax.enable_x64(True):
        kinds = dict(dtype=jnp.float64, param_dtype=jnp.float64)
        layout = VisualLayout("global", FRAMES)
        model = FunctionalModel.of(lambda rngs: VideoLLM(RESNET, LLAMA, layout, rngs=rngs, **kinds))
        params, stats = jax.jit(model.init)(jax.random.key(0))
        batch = packed_rows()

        def loss_of(params):
            module = model.merge(params, stats)
            hidden = module(jax.tree.map(jnp.asarray, batch), use_running=False)
            total = token_loss_sum(module.decoder, hidden, batch.targets, batch.weights)
            return total / batch.weights.sum()

        loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
        peer = beside.Peer(RESNET, LLAMA, torch.float64).load(params | stats)
        expected = beside.their_names(grads)
    with_double_norms(peer.decoder.model)
    frames, tokens = beside.questions_of(batch)
    assert frames.shape[0] == tokens.shape[0] == 2 * QUESTIONS
    theirs = peer.train()(frames, tokens)
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-8)
    found = {name: weight.grad for name, weight in peer.named_parameters()}
    assert set(found) == set(expected)
    for name, gradient in found.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        np.testing.assert_allclose(expected[name], gradient, rtol=0, atol=1e-6 * scale)


def test_another_model_is_refused(beside):
    peer = beside.Peer(RESNET, LLAMA, torch.float32)
    with pytest.raises(RuntimeError, match="missing .*projector.bias"):
        peer.load({})


@pytest.mark.slow
def test_every_row_has_its_times_and_ratio(beside, capsys):
    config = f"{Path(__file__).parents[2] / 'configs' / 'joint.py'}:bench"
    small = "model.decoder=tiny data.frames=2 data.crop=32 data.short_side=32 data.context=18"
    small += " stages.visual.batch=8 stages.joint.batch=8"
    beside.main(["--rounds=1", f"--config={config}", "--set", *small.split()])
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    for line in lines:
        ours, theirs, best, median, goal = map(float, line[34:].split())
        assert best == pytest.approx(ours / theirs, rel=0.1, abs=0.02) and median > 0 < goal
