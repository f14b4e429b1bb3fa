"""The decoder with its layers apart, for decoding.

A scan takes each layer's parameters and cache out of their stacks, at every token: as many bytes
again as the token must read. Apart they are read where they lie, and the cache is written in place.
"""

import jax
from flax import nnx

from rvllm_jax.models.llama import Llama, shared_prefix
from rvllm_jax.models.video_llm import VideoLLM


class UnrolledLlama(Llama):
    """`Llama` with parameters layers/0/..., layers/1/... and a cache of one array a layer.

    Made from a `Llama`, with whose arrays it is filled; it computes the same.
    """

    def __init__(self, llama: Llama):
        self.config, self.dtype, self.remat = llama.config, llama.dtype, "none"
        self.embed, self.norm = llama.embed, llama.norm
        if not llama.config.tied:
            self.head = llama.head
        graph, params = nnx.split(llama.layers)
        self.layers = nnx.List(
            nnx.merge(graph, jax.tree.map(lambda stacked, i=i: stacked[i], params))
            for i in range(llama.config.layers)
        )

    def _run_layers(self, x_BLD, rope, mask_BLS, cache):
        new = []
        for number, block in enumerate(self.layers):
            past = None
            if cache is not None:
                shared = cache.shared and (cache.shared.k[number], cache.shared.v[number])
                cached = cache.k[number], cache.v[number], cache.length
                past = *cached, shared_prefix(cache, shared)
            x_BLD, key_value = block(x_BLD, rope, mask_BLS, past)
            new.append(key_value)
        return x_BLD, tuple(zip(*new, strict=True))


def unroll(model: VideoLLM) -> VideoLLM:
    """The model with its decoder unrolled; itself where that was done before.

    Takes a copy of the decoder's layers: called inside a compiled function, it is made anew at each
    call. Who decodes often calls it once and keeps the result.
    """
    if isinstance(model.decoder, UnrolledLlama):
        return model
    model = nnx.clone(model)
    model.decoder = UnrolledLlama(model.decoder)
    return model
