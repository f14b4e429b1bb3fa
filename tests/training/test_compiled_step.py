"""The compiled step over eight devices: what crosses them, and what lies whole on each."""

import math

import jax
import numpy as np
import pytest

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.planning import hlo
from rvllm_jax.sharding import mesh as sharding
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.training.stages import label_parameters, make_optimizer
from rvllm_jax.training.state import TrainState
from rvllm_jax.training.step import make_step
from rvllm_jax.types import Batch, VisualLayout

pytestmark = pytest.mark.slow  # compilations for eight devices, half a minute or more

MB = 2**20
B, T, SIDE, L = 8, 4, 512, 32
RESNET = ResNetConfig((1, 1), False, (8, 16), stem="small", stem_stride=2)
# Matrices of 1 MB a layer, stacks of 6: larger than what may lie whole.
LLAMA = LlamaConfig(512, 512, 6, 4, 4, 128, 512, context=64)
STAGE = Stage("joint", "video", B, ((".*", "adamw"),), {"adamw": OptimizerSpec("adamw", 0.1)})


def model() -> FunctionalModel:
    layout = VisualLayout("global", T)
    return FunctionalModel.of(lambda rngs: VideoLLM(RESNET, LLAMA, layout, rngs=rngs, remat="full"))


def batch() -> Batch:
    tokens = jax.ShapeDtypeStruct((B, L), np.int32)
    rows = jax.ShapeDtypeStruct((B,), np.int32)
    return Batch(
        frames=jax.ShapeDtypeStruct((B, T, SIDE, SIDE, 3), np.uint8),
        frame_mask=jax.ShapeDtypeStruct((B, T), np.bool_),
        **dict.fromkeys(("tokens", "slots", "positions", "segments", "targets"), tokens),
        weights=jax.ShapeDtypeStruct((B, L), np.float32),
        examples=rows,
        errors=rows,
    )


@pytest.fixture(scope="module", params=[(1, 8, 1), (2, 2, 2)], ids=str)
def program(request):
    """(compiled step, its state as shapes, mesh)."""
    made = model()
    labels = label_parameters(STAGE, made.params)
    tx = make_optimizer(STAGE, labels, steps=10)
    state = TrainState(made.params, {}, made.stats, jax.eval_shape(tx.init, made.params))
    layout = JitLayout(sharding.make_mesh(*request.param))
    step = make_step(made, tx, loss_chunk=8)
    return layout.compile(step, tx, state, batch()), state, layout.mesh


def test_no_frames_are_gathered(program):
    compiled, _, mesh = program
    found = hlo.collectives(compiled.as_text(), mesh.size)
    assert found
    frames = B * T * SIDE * SIDE * 3 / mesh.size  # bytes of the frames that a device has
    assert max(each.largest_bytes for each in found) < frames
    assert all(each.dtype != "u8" for each in found)


def test_what_is_gathered_at_once_is_a_layer_and_no_stack(program):
    compiled, _, mesh = program
    gathers = [x for x in hlo.collectives(compiled.as_text(), mesh.size) if x.kind == "all-gather"]
    assert gathers and max(math.prod(each.shape) for each in gathers) <= 512 * 512


def test_no_moment_above_a_megabyte_lies_whole_on_a_device(program):
    compiled, state, _ = program
    (placed, _), _ = compiled.input_shardings
    returned, _ = compiled.output_shardings
    for where in (placed, returned):
        for part in ("opt", "trainable"):
            pairs = zip(
                jax.tree.leaves(getattr(state, part)),
                jax.tree.leaves(getattr(where, part)),
                strict=True,
            )
            large = [(x, s) for x, s in pairs if x.size * x.dtype.itemsize > MB]
            assert len(large) >= 7
            assert all(math.prod(s.shard_shape(x.shape)) <= x.size / 4 for x, s in large)
