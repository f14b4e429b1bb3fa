"""The video language model: ResNet, projector and Llama (ResNetVLLM, section 3).

Each frame is encoded, pooled to visual tokens, projected to the decoder's width, and spliced into
the sequence where the prompt has its video slots.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.projector import Projector
from rvllm_jax.models.resnet import ResNet, ResNetConfig
from rvllm_jax.models.visual_tokens import pool
from rvllm_jax.sharding.constrain import constrain, join_frames, split_frames
from rvllm_jax.sharding.rules import BATCH_AXES
from rvllm_jax.types import NO_SLOT, Batch, Questions, VisualLayout

# Red, green, blue over ImageNet, for pixels in [0, 1]: what the published ResNets were trained on.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(frames_u8: jax.Array, dtype) -> jax.Array:
    """uint8 pixels `[..., 3]` to zero mean and unit variance over ImageNet, in `dtype`."""
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.array(IMAGENET_MEAN, wide), jnp.array(IMAGENET_STD, wide)
    return ((frames_u8.astype(wide) / 255 - mean) / std).astype(dtype)


class VideoLLM(nnx.Module):
    """Parameters under encoder/, projector/ and decoder/; BatchNorm statistics under encoder/.

    `dtype` is that of the computation, `param_dtype` that of the parameters; `remat` is the
    decoder's (`Llama`), and the encoder recomputes its blocks unless it is "none".
    """

    def __init__(
        self,
        resnet: ResNetConfig,
        llama: LlamaConfig,
        layout: VisualLayout,
        projector: str = "linear",
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat: str = "none",
    ):
        kinds = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.layout, self.dtype = layout, dtype
        self.encoder = ResNet(resnet, remat=remat != "none", **kinds)
        self.projector = Projector(
            resnet.features, llama.width, projector, layout, llama.embedding_std, **kinds
        )
        self.decoder = Llama(llama, remat=remat, **kinds)

    def __call__(self, batch: Batch, *, use_running: bool) -> jax.Array:
        """Hidden states `[B, L, D]` of a packed batch; `decoder.logits` turns them into logits."""
        visual_BVD = self.encode_if_any(batch, use_running=use_running)
        x_BLD = self.embed(batch.tokens, batch.slots, visual_BVD)
        hidden_BLD, _ = self.decoder(x_BLD, batch.positions, batch.segments)
        return hidden_BLD

    def encode_if_any(
        self, batch: Batch | Questions, *, use_running: bool, blind: bool = False
    ) -> jax.Array | None:
        """The batch's visual tokens `[B, V, D]`, or None where it carries no frames (T = 0)."""
        if batch.frames.shape[1] == 0:
            return None
        return self.encode(batch.frames, batch.frame_mask, use_running=use_running, blind=blind)

    def encode(
        self, frames_BTHWC: jax.Array, mask_BT: jax.Array, *, use_running: bool, blind: bool = False
    ) -> jax.Array:
        """Visual tokens `[B, V, D]` of uint8 frames; `mask_BT` (bool) is False for padded frames.

        `use_running` normalises by BatchNorm's running statistics; otherwise by the batch's, which
        are then mixed into the running ones. `blind` zeroes the normalised frames: the control
        that shows whether the model looks.
        """
        B, T = mask_BT.shape
        x_NHWC = normalise(join_frames(frames_BTHWC), self.dtype)
        if blind:
            x_NHWC = jnp.zeros_like(x_NHWC)
        x_NhwE = self.encoder(x_NHWC, join_frames(mask_BT), use_running=use_running)
        # Only the tokens are gathered over `tensor`, not the feature maps.
        tokens_BVE = pool(split_frames(x_NhwE, B, T), mask_BT, self.layout)
        return constrain(self.projector(constrain(tokens_BVE, BATCH_AXES)), BATCH_AXES)

    def embed(
        self, tokens_BL: jax.Array, slots_BL: jax.Array, visual_BVD: jax.Array | None
    ) -> jax.Array:
        """Token embeddings `[B, L, D]`, with visual token `slots_BL` where that is not NO_SLOT."""
        x_BLD = self.decoder.embed_rows(tokens_BL)
        if visual_BVD is None:
            return x_BLD
        is_text_BL1 = (slots_BL == NO_SLOT)[:, :, None]
        indices_BL1 = jnp.maximum(slots_BL, 0)[:, :, None]
        spliced_BLD = jnp.take_along_axis(visual_BVD, indices_BL1, axis=1)
        return jnp.where(is_text_BL1, x_BLD, spliced_BLD.astype(x_BLD.dtype))
