"""Sizes of the Llama decoders, and the frequencies of their rotary positions."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the low rotary frequencies (arXiv:2407.21783, section 3.2)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All positions divided by `factor` (Chen et al. 2023, arXiv:2306.15595): Vicuna's 16k."""

    factor: float


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a decoder. Raises ValueError when heads or head_dim do not go together."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    context: int
    rope_theta: float = 1e4
    rope_scaling: RopeScaling | LinearScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; each key/value"
                " head serves an equal number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions need pairs")

    @property
    def init_std(self) -> float:
        """Standard deviation of a fresh kernel: Llama's 0.02 at its width of 4,096 is about
        1 / sqrt(width); at the width of `tiny`, 0.02 itself learns several times more slowly."""
        return self.width**-0.5

    @property
    def embedding_std(self) -> float:
        """As `init_std` where logits are taken with the embedding too; else large enough that the
        first layers' outputs do not drown it, so that `tiny` learns to copy much sooner."""
        return self.init_std if self.tied else 0.5

    @property
    def tensor_sizes(self) -> dict[str, int]:
        """The sizes that a mesh's `tensor` axis splits, by name."""
        return {name: getattr(self, name) for name in ("heads", "kv_heads", "mlp_width")}


# From the published config.json files, except `tiny` and `small`, which are ours; the vocabulary of
# `tiny` is that of the tokenizer in use, so replace it. In order: vocabulary, width, layers, heads,
# key/value heads, head_dim, MLP width, context.
DECODERS = {
    "tiny": LlamaConfig(512, 128, 4, 4, 2, 32, 256, 512),
    "small": LlamaConfig(32000, 512, 8, 8, 8, 64, 1376, 2048),
    "vicuna-7b": LlamaConfig(32000, 4096, 32, 32, 32, 128, 11008, 4096),
    "vicuna-13b": LlamaConfig(32000, 5120, 40, 40, 40, 128, 13824, 4096),
    "llama-3.2-1b": LlamaConfig(
        128256, 2048, 16, 32, 8, 64, 8192, 131072,
        rope_theta=5e5, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), tied=True,
    ),
    "tinyllama-1.1b": LlamaConfig(32000, 2048, 22, 32, 4, 64, 5632, 2048),
    "smollm2-135m": LlamaConfig(49152, 576, 30, 9, 3, 64, 1536, 8192, rope_theta=1e5, tied=True),
}  # fmt: skip


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians a position, `float32[head_dim / 2]`, after the scaling where one is set."""
    freq = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        freq = freq / scaling.factor
    elif scaling is not None:
        turns = scaling.original_context * freq / (2 * np.pi)  # within the original context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        freq = keep * freq + (1 - keep) * freq / scaling.factor
    return freq.astype(np.float32)
