"""Floating-point operations of one clip, by part and by formula.

A product of [m, k] and [k, n] counts 2 m k n. The compiler's own count is of no use here: it takes
the body of a scan over layers once.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any

from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.types import VisualLayout

PARTS = ("encoder", "projector", "decoder", "attention", "head")


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution of the encoder, as it meets a square frame."""

    size: int  # kernel
    inputs: int
    outputs: int
    side: int  # height and width of its output
    block: int  # 0: the stem; else the number of the residual block

    @property
    def elements(self) -> int:
        """Of its output, a frame."""
        return self.side**2 * self.outputs

    @property
    def flops(self) -> int:
        return 2 * self.elements * self.inputs * self.size**2


def convolutions(resnet: ResNetConfig, pixels: int) -> list[Convolution]:
    """All convolutions in order, shortcuts among them."""
    imagenet = resnet.stem == "imagenet"
    side = -(-pixels // (2 if imagenet else resnet.stem_stride))
    outputs = resnet.widths[0]
    layers = [Convolution(7 if imagenet else 3, 3, outputs, side, 0)]
    side = -(-side // 2) if imagenet else side
    for number, block in enumerate(itertools.chain(*resnet.stages), 1):
        inputs, strides = outputs, [stride for _, _, stride in block]
        for size, width, stride in block:
            side = -(-side // stride)
            layers.append(Convolution(size, outputs, width, side, number))
            outputs = width
        if max(strides) > 1 or outputs != inputs:
            layers.append(Convolution(1, inputs, outputs, side, number))
    return layers


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The work of a training step for one clip, from the sizes of the model and of its input."""

    resnet: ResNetConfig
    llama: LlamaConfig
    layout: VisualLayout
    projector: str
    pixels: int  # height and width of a frame
    tokens: int  # of the clip's sequence
    params: Mapping[str, Any]  # shapes by path
    trained: Collection[str]  # the paths that train
    video: bool = True  # whether frames are read
    remat: str = "none"
    loss_chunk: int = 0

    def forward(self) -> dict[str, int]:
        """Operations of one forward pass, by part.

        `attention` is the two products of queries, keys and values, over the whole square: half of
        it is masked. Norms, activations and rotary positions are left out (under 1 %).
        """
        llama, length = self.llama, self.tokens
        query, key_value = llama.heads * llama.head_dim, llama.kv_heads * llama.head_dim
        layer = llama.width * (2 * query + 2 * key_value + 3 * llama.mlp_width)
        projector = self.resnet.features * llama.width
        if self.projector == "mlp2x_gelu":
            projector += llama.width**2
        frame = sum(each.flops for each in convolutions(self.resnet, self.pixels))
        return {
            "encoder": self.layout.frames * frame if self.video else 0,
            "projector": 2 * self.layout.tokens * projector if self.video else 0,
            "decoder": 2 * length * layer * llama.layers,
            "attention": 4 * length**2 * query * llama.layers,
            "head": 2 * length * llama.width * llama.vocab_size,
        }

    def passes(self) -> dict[str, tuple[float, float]]:
        """By part: how often its forward pass counts in a step, and what of that is recomputation.

        Forward 1, gradient of the weights 1 where they train, of the inputs 1 where anything below
        trains. `attention` has no weights, but two inputs a product.
        """
        shares = trained_shares(self.params, self.trained)
        below = {"encoder": shares["encoder"], "projector": shares["encoder"]}
        visual = max(shares["encoder"], shares["projector"]) if self.video else 0
        below["decoder"] = max(visual, shares["embed"], shares["decoder"])
        below["head"] = max(below["decoder"], shares["decoder"])
        flows = {name: int(share > 0) for name, share in below.items()}  # gradients, to the inputs
        again = {
            "encoder": self.remat != "none",
            "projector": False,
            "decoder": self.remat == "full",
            "head": 0 < self.loss_chunk < self.tokens,
        }
        counts = {}
        for name, recomputed in again.items():
            extra = int(recomputed and flows[name])
            counts[name] = (1 + shares[name] + flows[name] + extra, extra)
        extra = int(self.remat != "none" and flows["decoder"])
        counts["attention"] = (1 + 2 * flows["decoder"] + extra, extra)
        return counts

    def step(self) -> dict[str, tuple[float, float]]:
        """By part: (operations of the model, those with recomputation)."""
        once, passes = self.forward(), self.passes()
        return {
            name: (once[name] * (times - extra), once[name] * times)
            for name, (times, extra) in ((name, passes[name]) for name in PARTS)
        }


def trained_shares(params: Mapping[str, Any], trained: Collection[str]) -> dict[str, float]:
    """Share of each part's matrix elements that train; "embed" says whether the embedding does."""

    def part(path: str) -> str:
        if not path.startswith("decoder/"):
            return path.split("/")[0]
        return "decoder" if path.startswith("decoder/layers/") else path.split("/")[1]

    elements, training = collections.Counter(), collections.Counter()
    for path, x in params.items():
        if len(x.shape) >= 2:
            elements[part(path)] += math.prod(x.shape)
            training[part(path)] += math.prod(x.shape) * (path in trained)
    shares = {name: training[name] / count for name, count in elements.items()}
    shares.setdefault("head", shares["embed"])  # tied
    return shares
