"""Clips a second and bytes between the chips, predicted by formula under stated shares of the peak.

A prediction is no measurement: it shows which of arithmetic, memory and links is the narrow place,
and it is to be replaced by what the bench command measures on the machine.
"""

import dataclasses
import math

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rvllm_jax.config.schema import FROZEN, Recipe, Stage
from rvllm_jax.costs.chips import Topology
from rvllm_jax.costs.flops import convolutions
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning.abstract import step_costs
from rvllm_jax.sharding.rules import AXES
from rvllm_jax.training.stages import label_parameters

EFFICIENCY = 0.5  # of the peak arithmetic, in matrix products and convolutions
STREAMING = 0.3  # of the peak memory bandwidth, in norms and activations between convolutions
LINKS = 0.7  # of the peak bandwidth of the links
# Times that the output of a convolution crosses the memory: written, read for the statistics, read
# and written by the norm, read by the next; twice that in the backward pass.
FORWARD_CROSSINGS, BACKWARD_CROSSINGS = 5, 10
COUNTS = (8, 16, 32, 64, 128, 256)  # chips


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of one training step, all chips together."""

    clips: int  # of the global batch
    arithmetic: float  # seconds
    transfer: float  # seconds that the links are busy, were nothing else done
    link_bytes: float  # bytes that each chip receives

    @property
    def seconds(self) -> float:
        """The links work while the chips compute: the longer of the two."""
        return max(self.arithmetic, self.transfer)

    @property
    def clips_a_second(self) -> float:
        return self.clips / self.seconds


def predict(
    recipe: Recipe,
    stage: Stage,
    model: FunctionalModel,
    mesh: AbstractMesh,
    topology: Topology,
    efficiency: float = EFFICIENCY,
) -> Speed:
    """A step of `stage`; `efficiency` is the share of the peak that matrix products reach."""
    chip = topology.chip
    peak = chip.flops_in(recipe.model.dtype) * efficiency
    work = step_costs(recipe, stage, model.params).step()
    clips = stage.batch / topology.chips
    rest = sum(executed for name, (_, executed) in work.items() if name != "encoder")
    tensor = mesh.shape["tensor"]
    # Frames that do not divide over `tensor` are encoded by each of its devices.
    repeated = 1 if recipe.data.frames % tensor == 0 else tensor
    encoder = max(
        work["encoder"][1] / peak,
        _encoder_bytes(recipe, stage, model) / (chip.bandwidth * STREAMING),
    )
    received = sum(collectives(recipe, stage, model, mesh).values())
    return Speed(
        clips=stage.batch,
        arithmetic=clips * (rest / peak + encoder * repeated),
        transfer=received / (topology.link * LINKS),
        link_bytes=received,
    )


def scaling(
    recipe: Recipe,
    stage: Stage,
    model: FunctionalModel,
    tensor: int,
    clips: int,
    topology: Topology,
    efficiency: float = EFFICIENCY,
) -> dict[int, Speed]:
    """By number of chips of the topology's kind: as many clips on each device of fsdp."""
    speeds = {}
    for chips in COUNTS:
        if chips % tensor == 0:
            mesh = AbstractMesh((1, chips // tensor, tensor), AXES)
            scaled = dataclasses.replace(stage, batch=clips * chips // tensor)
            slice_ = dataclasses.replace(topology, chips=chips)
            speeds[chips] = predict(recipe, scaled, model, mesh, slice_, efficiency)
    return speeds


def _encoder_bytes(recipe: Recipe, stage: Stage, model: FunctionalModel) -> float:
    """That one clip's feature maps move through the memory in a step."""
    if stage.input != "video":
        return 0.0
    times, extra = step_costs(recipe, stage, model.params).passes()["encoder"]
    crossings = FORWARD_CROSSINGS * (1 + extra)
    crossings += BACKWARD_CROSSINGS if times - extra > 1 else 0
    convs = convolutions(recipe.resnet, recipe.data.crop)
    size = jnp.dtype(recipe.model.dtype).itemsize
    return recipe.data.frames * sum(each.elements for each in convs) * size * crossings


def collectives(
    recipe: Recipe, stage: Stage, model: FunctionalModel, mesh: AbstractMesh
) -> dict[str, float]:
    """Bytes that each device receives in a step, by what for."""
    data, fsdp, tensor = (mesh.shape[axis] for axis in mesh.axis_names)
    size = jnp.dtype(recipe.model.dtype).itemsize
    labels = label_parameters(stage, model.params)

    def elements(part: str, trained: bool) -> int:
        return sum(
            math.prod(x.shape)
            for path, x in model.params.items()
            if path.startswith(part) and not (trained and labels[path] == FROZEN)
        )

    decoder, trained = elements("decoder/", False), elements("decoder/", True)
    encoder = elements("encoder/", False) if stage.input == "video" else 0
    encoder_trained = elements("encoder/", True) if stage.input == "video" else 0
    times, extra = step_costs(recipe, stage, model.params).passes()["decoder"]
    flows = 1 if times - extra > 1 else 0
    clips = stage.batch / (data * fsdp)
    hidden = clips * recipe.data.context * recipe.llama.width * size
    # The table is gathered once to look up tokens, the head for every chunk of the loss; its
    # gradient is summed whole there, at twice the bytes of sums that are split.
    micro, head = stage.accumulate, recipe.llama.width * recipe.llama.vocab_size
    chunks = math.ceil(recipe.data.context / (recipe.model.loss_chunk or recipe.data.context))
    layers, tied = decoder - (1 if recipe.llama.tied else 2) * head, recipe.llama.tied
    gathered = (1 + flows) * (layers + chunks * head) + head
    trains = labels[f"decoder/{'embed/embedding' if tied else 'head/kernel'}"] != FROZEN
    summed = trained + trains * (2 * chunks - (not tied)) * head
    return {
        "parameters": micro * size * (gathered / tensor + (1 + flows) * encoder) * _ring(fsdp),
        "gradients": micro * size * summed / tensor * _ring(fsdp)
        + 2 * size * trained / (tensor * fsdp) * _ring(data)
        + 2 * size * encoder_trained * _ring(data * fsdp * tensor),
        "activations": 2 * recipe.llama.layers * (1 + flows + extra) * 2 * hidden * _ring(tensor),
    }


def _ring(devices: int) -> float:
    return (devices - 1) / devices


def hours(speed: Speed, stage: Stage, pairs: int, questions: int) -> float:
    """Of the stage's steps, or of its epochs over `pairs`, `questions` of them in a sequence."""
    clips = stage.steps * stage.batch or stage.epochs * math.ceil(pairs / questions)
    return clips / speed.clips_a_second / 3600
