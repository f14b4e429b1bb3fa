"""Names of published weights and ours: one table for each kind of file, used both ways.

A rule names one tensor of theirs and one path of ours. "{n}" in both stands for a number; in theirs
alone it counts the layers, which are one array `[layers, ...]` of ours.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

# The axes of theirs in the order of ours: nothing to do, torch's [out, in], torch's [O, I, H, W].
PLAIN, MATRIX, CONV = None, (1, 0), (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One name of theirs, one path of ours, and the order of its axes."""

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = PLAIN

    @property
    def stacked(self) -> bool:
        """Whether their tensors are layers of one array of ours."""
        return "{n}" in self.theirs and "{n}" not in self.ours

    def path(self, name: str) -> tuple[str, int] | None:
        """Our path of their `name` and, where stacked, its layer (else 0); None: another's."""
        if (number := _number(self.theirs, name)) is None:
            return None
        return (self.ours, number) if self.stacked else (self.ours.format(n=number), 0)

    def names(self, path: str, layers: int) -> list[str]:
        """Their names, in order, of our `path`, whose first axis has `layers`; []: another's."""
        if (number := _number(self.ours, path)) is None:
            return []
        if self.stacked:
            return [self.theirs.format(n=layer) for layer in range(layers)]
        return [self.theirs.format(n=number)]


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\{n\}", "(0|[1-9][0-9]{0,4})"))


def _number(template: str, name: str) -> int | None:
    """The number in the place of "{n}", 0 where the template has none, None without a match."""
    match = _pattern(template).fullmatch(name)
    return match and int(match.group(1) if match.groups() else 0)


@dataclasses.dataclass(frozen=True)
class NameTable:
    """How a kind of file names its tensors. `ignored`: a regex of names that are not wanted."""

    rules: tuple[Rule, ...]
    ignored: str = ""

    def find(self, name: str) -> tuple[Rule, str, int] | None:
        """The rule of their `name`, our path and the layer; None where no rule has it."""
        for rule in self.rules:
            if (path_layer := rule.path(name)) is not None:
                return rule, *path_layer
        return None

    def names(self, path: str, layers: int) -> tuple[Rule, list[str]] | None:
        """The rule of our `path` and their names in order; None where no rule has it."""
        for rule in self.rules:
            if names := rule.names(path, layers):
                return rule, names
        return None

    def ignores(self, name: str) -> bool:
        """Whether their `name` is known and not wanted."""
        return bool(self.ignored) and re.fullmatch(self.ignored, name) is not None

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of their `names` that neither a rule nor `ignored` has."""
        return [name for name in names if not self.ignores(name) and self.find(name) is None]


def _decoder(inner: str, head: str) -> tuple[Rule, ...]:
    """Llama's names: `inner` before those of the layers, `head` before that of the head."""
    layer, ours = f"{inner}layers.{{n}}.", "decoder/layers/"
    projections = {f"self_attn.{n}_proj": f"attention/{n}" for n in "qkvo"}
    projections |= {f"mlp.{n}_proj": f"mlp/{n}" for n in ("gate", "up", "down")}
    return (
        Rule(f"{inner}embed_tokens.weight", "decoder/embed/embedding"),
        Rule(f"{inner}norm.weight", "decoder/norm/scale"),
        Rule(f"{head}lm_head.weight", "decoder/head/kernel", MATRIX),
        Rule(f"{layer}input_layernorm.weight", f"{ours}norm1/scale"),
        Rule(f"{layer}post_attention_layernorm.weight", f"{ours}norm2/scale"),
        *(Rule(f"{layer}{a}.weight", f"{ours}{b}/kernel", MATRIX) for a, b in projections.items()),
        *(Rule(f"{layer}{a}.bias", f"{ours}{b}/bias") for a, b in projections.items()),
    )


def _linear(theirs: str, number: int) -> tuple[Rule, ...]:
    """One layer of LLaVA's projector."""
    ours = f"projector/linear_{number}"
    return Rule(f"{theirs}.weight", f"{ours}/kernel", MATRIX), Rule(
        f"{theirs}.bias", f"{ours}/bias"
    )


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A BatchNorm with its running statistics."""
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Rule(f"{theirs}.{a}", f"{ours}/{b}") for a, b in leaves.items())


def _torchvision() -> tuple[Rule, ...]:
    """torchvision's ResNet, which timm's has the names of."""
    rules = [Rule("conv1.weight", "encoder/stem/conv/kernel", CONV)]
    rules += _norm("bn1", "encoder/stem/norm")
    for stage in range(4):
        theirs, ours = f"layer{stage + 1}.{{n}}.", f"encoder/stages/{stage}/{{n}}/"
        for k in (1, 2, 3):
            rules.append(Rule(f"{theirs}conv{k}.weight", f"{ours}conv{k}/kernel", CONV))
            rules += _norm(f"{theirs}bn{k}", f"{ours}norm{k}")
        rules.append(Rule(f"{theirs}downsample.0.weight", f"{ours}shortcut/conv/kernel", CONV))
        rules += _norm(f"{theirs}downsample.1", f"{ours}shortcut/norm")
    return tuple(rules)


def _transformers_resnet(prefix: str) -> tuple[Rule, ...]:
    """transformers' ResNetModel; within an image classifier its names have a prefix."""

    def convolution(theirs, conv, norm):
        first = Rule(f"{theirs}.convolution.weight", f"{conv}/kernel", CONV)
        return first, *_norm(f"{theirs}.normalization", norm)

    stem = "encoder/stem"
    rules = [*convolution(f"{prefix}embedder.embedder", f"{stem}/conv", f"{stem}/norm")]
    for stage in range(4):
        theirs = f"{prefix}encoder.stages.{stage}.layers.{{n}}."
        ours = f"encoder/stages/{stage}/{{n}}/"
        for k in (1, 2, 3):
            rules += convolution(f"{theirs}layer.{k - 1}", f"{ours}conv{k}", f"{ours}norm{k}")
        short = f"{ours}shortcut"
        rules += convolution(f"{theirs}shortcut", f"{short}/conv", f"{short}/norm")
    return tuple(rules)


INV_FREQ = r".*\.rotary_emb\.inv_freq"  # computed from rope_theta; old files hold it
COUNTS = r".*\.num_batches_tracked"  # counts that a fixed momentum has no use for

LLAMA = NameTable(_decoder("model.", ""), INV_FREQ)
# The eyes of LLaVA are CLIP's, and ours are a ResNet: the vision tower is left out.
LLAVA_HF = NameTable(
    _decoder("language_model.model.", "language_model.")
    + _linear("multi_modal_projector.linear_1", 1)
    + _linear("multi_modal_projector.linear_2", 2),
    rf"{INV_FREQ}|vision_tower\..*",
)
LLAVA_HF_NESTED = NameTable(  # as transformers 5 names them in memory
    _decoder("model.language_model.", "")
    + _linear("model.multi_modal_projector.linear_1", 1)
    + _linear("model.multi_modal_projector.linear_2", 2),
    rf"{INV_FREQ}|model\.vision_tower\..*",
)
LLAVA = NameTable(  # the original repository's; one layer before version 1.5
    _decoder("model.", "")
    + _linear("model.mm_projector.0", 1)
    + _linear("model.mm_projector.2", 2)
    + _linear("model.mm_projector", 1),
    rf"{INV_FREQ}|model\.vision_tower\..*|model\.image_newline",  # between an image's tiles
)
TORCHVISION = NameTable(_torchvision(), rf"{COUNTS}|fc\.(weight|bias)")
RESNET_HF = NameTable(_transformers_resnet(""), COUNTS)
RESNET_HF_CLASSIFIER = NameTable(
    _transformers_resnet("resnet."), rf"{COUNTS}|classifier\.1\.(weight|bias)"
)

# What the files of an architecture may be named like; the first whose rules have the names is it.
ARCHITECTURES = {
    "LlamaForCausalLM": (LLAMA,),
    "LLaMAForCausalLM": (LLAMA,),
    "LlavaForConditionalGeneration": (LLAVA_HF, LLAVA_HF_NESTED),
    "LlavaLlamaForCausalLM": (LLAVA,),
    "ResNetModel": (RESNET_HF,),
    "ResNetForImageClassification": (RESNET_HF_CLASSIFIER,),
}
TIMM = re.compile(r"resnet(18|34|50|101|152)")
