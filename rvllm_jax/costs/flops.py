"""Floating-point operations of one clip, by part and by formula.

A product of [m, k] and [k, n] counts 2 m k n. The compiler's own count is of no use here: it takes
the body of a scan over layers once.
"""

import dataclasses
import math

from rvllm_jax.config.schema import Recipe
from rvllm_jax.config.stage import FROZEN, Stage
from rvllm_jax.models.resnet import ResNetConfig

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
    width = resnet.widths[0]
    found, inputs, number = [Convolution(7 if imagenet else 3, 3, width, side, 0)], width, 0
    side = -(-side // 2) if imagenet else side
    for stage, (blocks, width) in enumerate(zip(resnet.blocks, resnet.widths, strict=True)):
        for block in range(blocks):
            number += 1
            before, stride = side, 2 if stage > 0 and block == 0 else 1
            side = -(-side // stride)
            outputs = width * (4 if resnet.bottleneck else 1)
            if resnet.bottleneck:
                found += [
                    Convolution(1, inputs, width, before, number),
                    Convolution(3, width, width, side, number),
                    Convolution(1, width, outputs, side, number),
                ]
            else:
                found += [
                    Convolution(3, inputs, width, side, number),
                    Convolution(3, width, outputs, side, number),
                ]
            if stride != 1 or inputs != outputs:
                found.append(Convolution(1, inputs, outputs, side, number))
            inputs = outputs
    return found


def forward(recipe: Recipe, *, video: bool = True, tokens: int = 0) -> dict[str, int]:
    """One clip's forward pass: a row of `tokens` (config.data.context by default).

    `attention` is the two products of queries, keys and values, over the whole square: half of it
    is masked. Norms, activations and rotary positions are left out (under 1 %).
    """
    llama, length = recipe.llama, tokens or recipe.data.context
    query, key_value = llama.heads * llama.head_dim, llama.kv_heads * llama.head_dim
    layer = llama.width * (2 * query + 2 * key_value + 3 * llama.mlp_width)
    features, visual = recipe.resnet.features, recipe.layout.tokens
    projector = features * llama.width
    if recipe.model.projector == "mlp2x_gelu":
        projector += llama.width**2
    frame = sum(each.flops for each in convolutions(recipe.resnet, recipe.data.crop))
    return {
        "encoder": recipe.data.frames * frame if video else 0,
        "projector": 2 * visual * projector if video else 0,
        "decoder": 2 * length * layer * llama.layers,
        "attention": 4 * length**2 * query * llama.layers,
        "head": 2 * length * llama.width * llama.vocab_size,
    }


def trained_shares(params: dict, labels: dict[str, str]) -> dict[str, float]:
    """Share of each part's matrix elements that train; "embed" says whether the embedding does."""

    def part(path: str) -> str:
        if not path.startswith("decoder/"):
            return path.split("/")[0]
        return "decoder" if path.startswith("decoder/layers/") else path.split("/")[1]

    total, trained = {}, {}
    for path, x in params.items():
        if len(x.shape) < 2:
            continue
        size = math.prod(x.shape)
        total[part(path)] = total.get(part(path), 0) + size
        trained[part(path)] = trained.get(part(path), 0) + size * (labels[path] != FROZEN)
    shares = {name: trained[name] / size for name, size in total.items()}
    shares.setdefault("head", shares["embed"])  # tied
    return shares


def passes(recipe: Recipe, stage: Stage, params: dict) -> dict[str, tuple[float, float]]:
    """By part: how often its forward pass counts in a step, and what of that is recomputation.

    Forward 1, gradient of the weights 1 where they train, of the inputs 1 where anything below
    trains. `attention` has no weights, but two inputs a product.
    """
    shares = trained_shares(params, stage.labels(params))
    video = stage.input == "video"
    below = {"encoder": shares["encoder"], "projector": shares["encoder"]}
    visual = max(shares["encoder"], shares["projector"]) if video else 0
    below["decoder"] = max(visual, shares["embed"], shares["decoder"])
    below["head"] = max(below["decoder"], shares["decoder"])
    again = recipe.model.remat
    found = {}
    for name in ("encoder", "projector", "decoder", "head"):
        flows = below[name] > 0
        extra = 0
        if name == "encoder":
            extra = 1 if flows and again != "none" else 0
        elif name == "decoder":
            extra = 1 if flows and again == "full" else 0
        elif name == "head":
            extra = 1 if flows and 0 < recipe.model.loss_chunk < recipe.data.context else 0
        found[name] = (1 + shares[name] + (1 if flows else 0) + extra, extra)
    flows = below["decoder"] > 0
    extra = 1 if flows and again != "none" else 0
    found["attention"] = (1 + (2 if flows else 0) + extra, extra)
    return found


def step(
    recipe: Recipe, stage: Stage, params: dict, tokens: int = 0
) -> dict[str, tuple[float, float]]:
    """By part, of one clip in a training step: (operations of the model, with recomputation)."""
    once = forward(recipe, video=stage.input == "video", tokens=tokens)
    found = {}
    for name, (times, extra) in passes(recipe, stage, params).items():
        found[name] = (once[name] * (times - extra), once[name] * times)
    return {name: found[name] for name in PARTS}
