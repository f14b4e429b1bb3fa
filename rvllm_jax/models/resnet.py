"""ResNet v1.5, the encoder of each frame (He et al., 2016; stride in the 3x3 convolution).

Shapes and padding are torchvision's, so that its weights load name by name: N frames (clips and
times flattened), h x w places, C channels, E features of the last stage.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.models.norms import BatchNorm, GroupNorm
from rvllm_jax.models.windows import convolve, max_pool
from rvllm_jax.sharding.constrain import constrain


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A ResNet's shape: `blocks` and `widths` a stage, widths before the bottleneck's x4.

    `stem`: "imagenet" is 7x7 with stride 2, then 3x3 max pooling with stride 2 (h = H / 32 after
    four stages); "small" is one 3x3 convolution with `stem_stride`, for frames of a few dozen
    pixels. `groups` counts with `norm="group"` only.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = "imagenet"
    norm: str = "batch"
    groups: int = 32
    stem_stride: int = 1

    def __post_init__(self):
        if len(self.blocks) != len(self.widths) or not self.blocks or min(self.blocks) < 1:
            raise ValueError(
                f"ResNetConfig: blocks={self.blocks} and widths={self.widths} need one positive "
                f"number a stage each"
            )
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"ResNetConfig: stem={self.stem!r}, expected 'imagenet' or 'small'")
        if self.norm not in ("batch", "group"):
            raise ValueError(f"ResNetConfig: norm={self.norm!r}, expected 'batch' or 'group'")

    @property
    def features(self) -> int:
        """E, the channels of the last stage."""
        return self.widths[-1] * (4 if self.bottleneck else 1)

    @property
    def stages(self) -> list[list[list[tuple[int, int, int]]]]:
        """Of each stage the residual blocks, of each block its convolutions: 3x3, 3x3 ("basic"), or
        1x1, 3x3, 1x1 to four times the width (bottleneck), as (kernel size, outputs, stride)."""

        def block(width: int, stride: int) -> list[tuple[int, int, int]]:
            if self.bottleneck:
                return [(1, width, 1), (3, width, stride), (1, 4 * width, 1)]
            return [(3, width, stride), (3, width, 1)]

        return [
            [block(width, 2 if stage > 0 and number == 0 else 1) for number in range(blocks)]
            for stage, (blocks, width) in enumerate(zip(self.blocks, self.widths, strict=True))
        ]

    def output_size(self, pixels: int) -> int:
        """h = w of the feature map of a frame of `pixels` x `pixels`."""
        halvings = len(self.widths) - 1
        strides = [2, 2] if self.stem == "imagenet" else [self.stem_stride]
        for stride in strides + [2] * halvings:
            pixels = -(-pixels // stride)  # odd sizes round up, by torch's padding
        return pixels


RESNETS = {
    # For frames of 32x32 on CPU: 4x4 places. A fourth stage of width 16 at full resolution, before
    # these three, has the same number of products a stage but takes 2.5 times as long.
    "narrow": ResNetConfig((1, 1, 1), False, (32, 64, 128), stem="small", stem_stride=2, groups=8),
    "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetConfig((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetConfig((3, 4, 6, 3)),
    "resnet101": ResNetConfig((3, 4, 23, 3)),
    "resnet152": ResNetConfig((3, 8, 36, 3)),
}


class Conv(nnx.Module):
    """Convolution without bias, `kernel` [k, k, in, out], padded by k // 2 on every side as torch.

    "SAME" would pad strided convolutions on one side only and shift what the weights see.
    """

    def __init__(self, inputs, outputs, size, stride, *, rngs, dtype, param_dtype):
        # He et al. (2015), fan_out: torchvision's choice.
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), param_dtype))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x_NhwC: jax.Array) -> jax.Array:
        """`dtype[N, h, w, in]` -> `dtype[N, h / stride, w / stride, out]`, rounded up."""
        # Whole on every device: else the compiler may split channels and gather the frames.
        kernel = constrain(self.kernel[...].astype(self.dtype))
        size = kernel.shape[0]
        if size == 1:
            # The same sums as a matrix product: 15 % less time a step on CPU. Larger kernels as
            # products of patches or of shifted frames take twice the time at narrow widths.
            return x_NhwC[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        return convolve(x_NhwC, kernel, self.stride)


class ConvNorm(nnx.Module):
    """A convolution and its normalisation: the stem, and the shortcut where shapes change."""

    def __init__(self, inputs, outputs, size, stride, make_norm, **dtypes):
        self.conv = Conv(inputs, outputs, size, stride, **dtypes)
        self.norm = make_norm(outputs)

    def __call__(self, x_NhwC, mask_N, *, use_running):
        """As `Conv`; `mask_N` and `use_running` are the norm's."""
        return self.norm(self.conv(x_NhwC), mask_N, use_running=use_running)


class ResidualBlock(nnx.Module):
    """A residual block, one of `ResNetConfig.stages`: conv1, norm1, conv2, norm2, ..."""

    def __init__(self, inputs, convolutions, make_norm, **dtypes):
        outputs, stride = inputs, 1
        # Every scale starts at 1, the last of a block too, as torchvision's default: with 0
        # (Goyal et al., 2017) the convolutions of a block get no gradient in the first step.
        for layer, (size, width, step) in enumerate(convolutions, 1):
            setattr(self, f"conv{layer}", Conv(outputs, width, size, step, **dtypes))
            setattr(self, f"norm{layer}", make_norm(width))
            outputs, stride = width, stride * step
        self.layers = len(convolutions)
        self.shortcut = (
            ConvNorm(inputs, outputs, 1, stride, make_norm, **dtypes)
            if stride != 1 or inputs != outputs
            else None
        )

    def __call__(self, x_NhwC, mask_N, *, use_running):
        """`dtype[N, h, w, inputs]` -> `dtype[N, h / stride, w / stride, outputs]`, rounded up."""
        y_NhwC = x_NhwC
        for layer in range(1, self.layers + 1):
            conv, norm = getattr(self, f"conv{layer}"), getattr(self, f"norm{layer}")
            y_NhwC = norm(conv(y_NhwC), mask_N, use_running=use_running)
            if layer < self.layers:
                y_NhwC = jax.nn.relu(y_NhwC)
        if self.shortcut is not None:
            x_NhwC = self.shortcut(x_NhwC, mask_N, use_running=use_running)
        return jax.nn.relu(x_NhwC + y_NhwC)


class ResNet(nnx.Module):
    """Frames to feature maps, before pooling (ResNetVLLM, section 3, encodes frame by frame).

    Parameters are held in `param_dtype`, convolutions run in `dtype`, statistics in float32 or
    better. With `remat` the backward pass keeps what goes from block to block and computes the
    inside of a block again.
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        def make_norm(features):
            if config.norm == "group":
                return GroupNorm(features, config.groups, dtype=dtype, param_dtype=param_dtype)
            return BatchNorm(features, dtype=dtype, param_dtype=param_dtype)

        dtypes = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.dtype, self.remat = config, dtype, remat
        inputs = config.widths[0]
        size, stride = (7, 2) if config.stem == "imagenet" else (3, config.stem_stride)
        self.stem = ConvNorm(3, inputs, size, stride, make_norm, **dtypes)
        self.stages = nnx.List()
        for blocks in config.stages:
            self.stages.append(nnx.List())
            for convolutions in blocks:
                self.stages[-1].append(ResidualBlock(inputs, convolutions, make_norm, **dtypes))
                _, inputs, _ = convolutions[-1]

    def __call__(self, x_NHWC: jax.Array, mask_N: jax.Array, *, use_running: bool) -> jax.Array:
        """Features `dtype[N, h, w, E]` of normalised frames `float[N, H, W, 3]`.

        `mask_N`, bool: False for a padded frame, which BatchNorm does not count; its features are
        finite and mean nothing. With `use_running` False the running statistics are updated.
        """

        def run_stem(stem, x_NHWC, mask_N):
            x_NhwC = jax.nn.relu(stem(x_NHWC, mask_N, use_running=use_running))
            if self.config.stem == "imagenet":
                x_NhwC = max_pool(x_NhwC)
            return x_NhwC

        def run(block, x_NhwC, mask_N):
            return block(x_NhwC, mask_N, use_running=use_running)

        if self.remat:
            run_stem, run = nnx.remat(run_stem), nnx.remat(run)
        x_NhwC = run_stem(self.stem, x_NHWC.astype(self.dtype), mask_N)
        for stage in self.stages:
            for block in stage:
                x_NhwC = run(block, x_NhwC, mask_N)
        return x_NhwC
