"""The Llama decoder in Flax NNX: Llama 1, 2 and 3, Vicuna, TinyLlama and SmolLM2 shapes.

Pre-norm blocks of grouped-query attention with rotary positions and of a SwiGLU network
(Touvron et al. 2023, arXiv:2302.13971; Llama 3: arXiv:2407.21783). The layers are one stack of
parameters `[layers, ...]` run by a scan, so that the program does not grow with the depth.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.models import kv_cache
from rvllm_jax.models.attention import SharedPrefix, TokenPositions, attend, make_mask
from rvllm_jax.models.kv_cache import KVCache
from rvllm_jax.models.llama_config import LlamaConfig, rope_frequencies
from rvllm_jax.sharding.constrain import constrain, constrain_layer
from rvllm_jax.sharding.rules import BATCH_AXES
from rvllm_jax.types import PREFIX

REMAT_POLICIES = ("none", "full", "dots")
# Up to this depth the scan is unrolled: a training step of 4 layers on CPU then takes a fifth less.
UNROLLED_LAYERS = 4


def rope_angles(config: LlamaConfig, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, `float32[B, L, 1, head_dim / 2]`; float32 whatever the compute dtype."""
    angles = positions_BL[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLNH: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`[B, L, N, H]` turned by `rope_angles`, over pairs (i, i + H/2) as Hugging Face lays them."""
    cos, sin = rope
    wide = x_BLNH.astype(jnp.promote_types(x_BLNH.dtype, jnp.float32))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BLNH.dtype)


def shared_prefix(cache: KVCache, layer: tuple[jax.Array, jax.Array] | None) -> SharedPrefix | None:
    """For `attend`: one layer's (k, v) `[A, P, K, H]` of the prefixes in front of a cache."""
    return layer and SharedPrefix(*layer, cache.shared.segments == PREFIX)


@jax.custom_vjp
def project(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`[..., D] @ [D, V]` in float32 or better; its gradient is rounded to their dtype going back.

    Left to JAX the products of a 16-bit backward pass would be of float32, at half the speed, and
    the matrix's gradient twice as large.
    """
    return jnp.matmul(x, matrix, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _project_forward(x, matrix):
    return project(x, matrix), (x, matrix)


def _project_backward(kept, gradient):
    x, matrix = kept
    return jax.vjp(jnp.matmul, x, matrix)[1](gradient.astype(x.dtype))


project.defvjp(_project_forward, _project_backward)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32 or better."""

    def __init__(self, width: int, eps: float, *, param_dtype=jnp.float32):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., width]` normalised, in the dtype of `x`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide *= jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...]).astype(x.dtype)


class Linear(nnx.Linear):
    """A matrix, kernel `[features, out]`, drawn from a normal distribution; a bias starts at 0.

    `lora`: an adapter beside the kernel, whose output is added (`lora.adapt` lays it there).
    """

    lora: nnx.Module | None = None

    def __init__(self, features: int, out: int, std: float, bias: bool = False, **kinds):
        init = nnx.initializers.normal(std)
        super().__init__(features, out, use_bias=bias, kernel_init=init, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]` -> `[..., out]`."""
        y = super().__call__(x)
        return y if self.lora is None else y + self.lora(x)


def stack(cls: type[nnx.Module], count: int, *arguments, rngs: nnx.Rngs, **kinds) -> nnx.Module:
    """`count` modules as one, `cls(*arguments, rngs=rngs, **kinds)`, each of its arrays stacked."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return cls(*arguments, rngs=rngs, **kinds)

    return make(rngs)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, **kinds):
        self.head_dim = config.head_dim
        query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
        std, bias = config.init_std, config.attention_bias
        self.q = Linear(config.width, query, std, bias, **kinds)
        self.k = Linear(config.width, key_value, std, bias, **kinds)
        self.v = Linear(config.width, key_value, std, bias, **kinds)
        self.o = Linear(query, config.width, std / math.sqrt(2 * config.layers), bias, **kinds)

    def __call__(self, x_BLD, rope, mask_BLS, past):
        """-> output `[B, L, D]` and the new (k, v), each `[B, L, K, H]`; `past` is one layer's
        (k, v, length, `SharedPrefix` or None) of a cache that these are to follow, or None."""
        x_MD = x_BLD.reshape(-1, x_BLD.shape[-1])  # as in MLP
        heads = (*x_BLD.shape[:2], -1, self.head_dim)
        q_BLNH, k_BLKH, v_BLKH = (
            constrain(project(x_MD).reshape(heads), BATCH_AXES, None, "tensor")
            for project in (self.q, self.k, self.v)
        )
        q_BLNH, k_BLKH = rotate(q_BLNH, rope), rotate(k_BLKH, rope)
        new = k_BSKH, v_BSKH = k_BLKH, v_BLKH
        shared = None
        if past is not None:
            k_past, v_past, length, shared = past
            k_BSKH = kv_cache.write_slots(k_past, k_BLKH, length)
            v_BSKH = kv_cache.write_slots(v_past, v_BLKH, length)
        out_BLNH = attend(q_BLNH, k_BSKH, v_BSKH, mask_BLS, shared)
        return self.o(out_BLNH.reshape(len(x_MD), -1)).reshape(x_BLD.shape), new


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig, **kinds):
        std, bias = config.init_std, config.mlp_bias
        self.gate = Linear(config.width, config.mlp_width, std, bias, **kinds)
        self.up = Linear(config.width, config.mlp_width, std, bias, **kinds)
        down_std = std / math.sqrt(2 * config.layers)
        self.down = Linear(config.mlp_width, config.width, down_std, bias, **kinds)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """`dtype[B, L, D]` -> `dtype[B, L, D]`."""
        # One axis of B * L tokens: on CPU the gradient of a product over two axes is slower.
        x_MD = x_BLD.reshape(-1, x_BLD.shape[-1])
        hidden_MF = constrain(jax.nn.silu(self.gate(x_MD)) * self.up(x_MD), BATCH_AXES, "tensor")
        return self.down(hidden_MF).reshape(x_BLD.shape)


class DecoderLayer(nnx.Module):
    """One layer: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: LlamaConfig, *, rngs, dtype, param_dtype):
        kinds = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.norm1 = RMSNorm(config.width, config.norm_eps, param_dtype=param_dtype)
        self.attention = Attention(config, **kinds)
        self.norm2 = RMSNorm(config.width, config.norm_eps, param_dtype=param_dtype)
        self.mlp = MLP(config, **kinds)

    def __call__(self, x_BLD, rope, mask_BLS, past):
        """-> output `[B, L, D]` and the new (k, v); arguments are those of `Attention`."""
        attended, new = self.attention(self.norm1(x_BLD), rope, mask_BLS, past)
        x_BLD = constrain(x_BLD + attended, BATCH_AXES)
        return constrain(x_BLD + self.mlp(self.norm2(x_BLD)), BATCH_AXES), new


class Llama(nnx.Module):
    """The decoder. Parameters: embed/embedding, layers/{norm1,norm2}/scale,
    layers/attention/{q,k,v,o}/kernel, layers/mlp/{gate,up,down}/kernel, norm/scale and, when not
    tied, head/kernel; kernels are `[in, out]`, those of `layers` with the layer in front. With
    `attention_bias` or `mlp_bias` a bias `[layers, out]` stands beside each of their kernels.

    `remat` says what the backward pass keeps of each layer: "none" recomputes nothing, "full"
    recomputes all, "dots" keeps the results of the matrix products with parameters.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat: str = "none",
    ):
        if remat not in REMAT_POLICIES:
            raise ValueError(f"remat={remat!r} is unknown; choose one of {REMAT_POLICIES}")
        self.config, self.dtype, self.remat = config, dtype, remat
        kinds = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(config.embedding_std),
            **kinds,
        )
        self.layers = stack(DecoderLayer, config.layers, config, **kinds)
        self.norm = RMSNorm(config.width, config.norm_eps, param_dtype=param_dtype)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size, config.init_std, **kinds)

    def __call__(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array,
        segments_BL: jax.Array,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states `[B, L, D]` after the last norm, and the cache with these L tokens added.

        `x_BLD` are embeddings, `positions_BL` (int32) rotary positions, `segments_BL` (int32) as
        in `types.Batch`. With a cache the tokens also see what it holds.
        """
        L = x_BLD.shape[1]
        row = jnp.arange(L, dtype=jnp.int32)[None]
        if cache is None:
            here = TokenPositions(row, segments_BL)
            mask_BLS = make_mask(here, here)
        else:
            cache = kv_cache.reserve(cache, segments_BL)
            slots = jnp.arange(cache.segments.shape[1], dtype=jnp.int32)[None]
            mask_BLS = make_mask(
                TokenPositions(cache.length + row, segments_BL),
                TokenPositions(slots, cache.segments),
            )
        x_BLD, new = self._run_layers(
            x_BLD.astype(self.dtype), rope_angles(self.config, positions_BL), mask_BLS, cache
        )
        if cache is not None:
            cache = kv_cache.write(cache, *new)
        return self.norm(x_BLD), cache

    def _run_layers(self, x_BLD, rope, mask_BLS, cache: KVCache | None):
        """-> x after all layers and, with a cache, the new (k, v) `[layers, B, L, K, H]`."""
        graph, params = nnx.split(self.layers)

        def body(x_BLD, inputs):
            params, past = inputs
            if past is not None:
                k, v, shared = past
                past = k, v, cache.length, shared_prefix(cache, shared)
            layer = nnx.merge(graph, constrain_layer(params, self.dtype))
            x_BLD, new = layer(x_BLD, rope, mask_BLS, past)
            return x_BLD, None if past is None else new

        unroll = self.config.layers <= UNROLLED_LAYERS
        if self.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if self.remat == "dots" else None
            # Outside a loop the compiler would find the recomputation to be common and undo it.
            body = jax.checkpoint(body, prevent_cse=unroll, policy=policy)
        past = None
        if cache is not None:
            past = cache.k, cache.v, cache.shared and (cache.shared.k, cache.shared.v)
        return jax.lax.scan(body, x_BLD, (params, past), unroll=unroll)

    def embed_rows(self, tokens_BL: jax.Array) -> jax.Array:
        """Embeddings `dtype[B, L, D]`, as of `embed`, of tokens that a mesh may have split.

        The table is gathered in the dtype of the computation: the compiler cannot look up
        split tokens in a table that is split over the same devices, and would replicate both. Were
        it not said where it lies before, the float32 table would be gathered and then rounded.
        """
        table_VD = constrain(self.embed.embedding[...].astype(self.dtype), "tensor", "fsdp")
        return constrain(
            jnp.take(constrain(table_VD, None, "tensor"), tokens_BL, axis=0), BATCH_AXES
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., D]` -> `[..., vocab_size]` in float32, or in float64 where `hidden` is."""
        tied = self.config.tied
        matrix = self.embed.embedding[...].T if tied else self.head.kernel[...]
        matrix = constrain(matrix.astype(hidden.dtype), "fsdp", "tensor")
        logits = project(hidden, matrix)
        return constrain(logits, BATCH_AXES, *[None] * (logits.ndim - 2), "tensor")
