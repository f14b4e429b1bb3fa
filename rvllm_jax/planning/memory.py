"""Bytes a device, by formula: what a step holds, and what its activations take at their most.

State, gradients and input are exact sums over the arrays as they are split. Activations are an
estimate, checked against the compiler's figures (compile.py); tiles' padding is not counted.
"""

import bisect
import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology
from rvllm_jax.costs.flops import Convolution, convolutions
from rvllm_jax.models import attention
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import abstract
from rvllm_jax.sharding import mesh as sharding
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.sharding.rules import AXES

# How many arrays of a block's size exist at once in its backward pass: recomputed outputs of its
# convolutions and norms, and their gradients.
LIVE = 3


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device at the peak of a training step."""

    parameters: int
    gradients: int
    optimizer: int
    batchnorm: int
    activations: int
    input: int

    @property
    def peak(self) -> int:
        return sum(vars(self).values())


def abstract_mesh(recipe: Recipe, chips: int) -> AbstractMesh:
    """The recipe's mesh over that many devices; ValueError where it does not fit them."""
    if recipe.parallel == "pmap":
        return AbstractMesh((chips, 1, 1), AXES)
    sizes = sharding.mesh_sizes(**recipe.mesh, devices=chips)
    sharding.check_tensor(sizes[2], recipe.llama.tensor_sizes)
    return AbstractMesh(sizes, AXES)


def _bytes(arrays, shardings) -> int:
    pairs = zip(jax.tree.leaves(arrays), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)


def measure(
    recipe: Recipe, stage: Stage, model: FunctionalModel, mesh: AbstractMesh, platform: str
) -> Memory:
    """The formula, for a batch of `stage.batch` clips over `mesh` of "cpu", "gpu" or "tpu"."""
    setup, state = abstract.state(recipe, stage, model)
    where = JitLayout(mesh).state_shardings(setup.tx, state)
    clips = stage.batch / (mesh.shape["data"] * mesh.shape["fsdp"])
    trainable = _bytes(state.trainable, where.trainable)
    return Memory(
        parameters=trainable + _bytes(state.frozen, where.frozen),
        # With micro-batches the sum and the newest exist at once.
        gradients=trainable * (2 if stage.accumulate > 1 else 1),
        optimizer=_bytes(state.opt, where.opt),
        batchnorm=_bytes(state.stats, where.stats),
        activations=int(_activations(recipe, stage, mesh, clips / stage.accumulate, platform)),
        input=int(clips * clip_bytes(recipe, stage)),
    )


def largest_batch(
    recipe: Recipe, stage: Stage, mesh: AbstractMesh, topology: Topology, measured: Memory
) -> int:
    """Most clips of a global batch that fits; 0: not one a device.

    measured: with any batch; activations and input grow with it, the rest does not.
    """
    room = topology.chip.usable - (measured.peak - measured.activations - measured.input)
    input_ = stage.accumulate * clip_bytes(recipe, stage)

    def taken(clips: int) -> float:
        return clips * input_ + _activations(recipe, stage, mesh, clips, topology.platform)

    count = bisect.bisect_right(range(room // input_ + 1), room, key=taken) - 1
    return max(count, 0) * stage.accumulate * mesh.shape["data"] * mesh.shape["fsdp"]


def clip_bytes(recipe: Recipe, stage: Stage) -> int:
    """Of one clip of a batch with its sequence, as they go to the device."""
    batch = abstract.batch(recipe, dataclasses.replace(stage, batch=1))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in batch)


def _activations(
    recipe: Recipe, stage: Stage, mesh: AbstractMesh, clips: float, platform: str
) -> float:
    kept_encoder = inside_encoder = 0.0
    tensor = mesh.shape["tensor"]
    if stage.input == "video":
        parts = tensor if recipe.data.frames % tensor == 0 else 1
        kept_encoder, inside_encoder = _encoder(recipe, clips * recipe.data.frames / parts)
    kept_decoder, inside_decoder = _decoder(recipe, clips, tensor, platform)
    # The encoder's are kept while the decoder runs; when its backward pass runs the decoder's
    # are gone.
    return kept_encoder + max(inside_encoder, kept_decoder + inside_decoder)


def _encoder(recipe: Recipe, frames: float) -> tuple[float, float]:
    """(kept for the backward pass, the most that a block needs while it is computed)."""
    size = jnp.dtype(recipe.model.dtype).itemsize
    convs = convolutions(recipe.resnet, recipe.data.crop)
    blocks: dict[int, list[Convolution]] = {}
    for each in convs:
        blocks.setdefault(each.block, []).append(each)
    # Stem: its input and what it hands on; block: its output.
    shrink = 4 if recipe.resnet.stem == "imagenet" else 1
    outputs = [3 * recipe.data.crop**2 + convs[0].elements // shrink]
    outputs += [convs[-1].elements for number, convs in blocks.items() if number]
    inside = max(sum(c.elements for c in convs) for convs in blocks.values())
    if recipe.model.remat == "none":
        # Of every convolution its output and what comes out of norm and activation.
        return frames * size * 2 * sum(c.elements for c in convs), frames * size * LIVE * inside
    return frames * size * sum(outputs), frames * size * LIVE * inside


def _decoder(recipe: Recipe, clips: float, tensor: int, platform: str) -> tuple[float, float]:
    """(kept for the backward pass, the most that a layer or the loss needs meanwhile)."""
    llama, length = recipe.llama, recipe.data.context
    dtype, wide = jnp.dtype(recipe.model.dtype), 4
    size = dtype.itemsize
    query, key_value = llama.heads * llama.head_dim, llama.kv_heads * llama.head_dim
    tokens, square = clips * length, clips * length**2 * llama.heads / tensor
    if attention.of_shapes(platform, dtype, (length, length), llama.head_dim):
        square = 0.0  # neither kernel holds the scores
    heads = tokens * (2 * query + 2 * key_value) / tensor
    hidden = tokens * 3 * llama.mlp_width / tensor
    # Scores and their gradient in float32, probabilities and theirs in the computation's dtype.
    layer = square * (2 * wide + 2 * size) + 2 * size * (heads + hidden + 3 * tokens * llama.width)
    kept = tokens * llama.width * size
    if recipe.model.remat == "dots":
        kept += size * (heads + tokens * 2 * llama.width + tokens * 2 * llama.mlp_width / tensor)
    elif recipe.model.remat == "none":
        kept += square * (wide + size) + size * (heads + hidden + 4 * tokens * llama.width)
    matrices = llama.width * (2 * query + 2 * key_value + 3 * llama.mlp_width) / tensor
    # A layer's matrices and the next's as they are gathered, and gradients before they are split.
    gathered = 3 * size * matrices
    chunk = recipe.model.loss_chunk or length
    vocabulary = llama.vocab_size / tensor
    loss = clips * min(chunk, length) * vocabulary * 2 * wide
    loss += 2 * size * llama.width * vocabulary  # the matrix as it is gathered, and its gradient
    return llama.layers * kept, max(layer + gathered, loss)
