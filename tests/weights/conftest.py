"""Small folders as Hugging Face lays them out, with names and shapes of a Llama."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def llama_tensors(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (11, 8), "model.norm": (8,), "lm_head": (11, 8)}
    for layer in range(CONFIG["num_hidden_layers"]):
        inner = f"model.layers.{layer}."
        shapes |= {f"{inner}self_attn.{n}_proj": (8, 8) for n in "qo"}
        shapes |= {f"{inner}self_attn.{n}_proj": (4, 8) for n in "kv"}
        shapes |= {f"{inner}mlp.gate_proj": (12, 8), f"{inner}mlp.up_proj": (12, 8)}
        shapes |= {f"{inner}mlp.down_proj": (8, 12)}
        shapes |= {f"{inner}{n}_layernorm": (8,) for n in ("input", "post_attention")}
    return {f"{n}.weight": rng.normal(size=s).astype(dtype) for n, s in shapes.items()}


@pytest.fixture
def llama(tmp_path):
    """Makes a folder: `llama(tensors, shards=2, index=True, **config)`."""

    def make(tensors=None, *, shards=1, index=True, name="theirs", **config):
        folder = tmp_path / name
        folder.mkdir()
        values = {k: v for k, v in (CONFIG | config).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(values))
        tensors = llama_tensors() if tensors is None else tensors
        names = sorted(tensors)
        if shards == 1:
            save_file(tensors, folder / "model.safetensors")
            return folder
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            own = names[shard::shards]
            save_file({n: tensors[n] for n in own}, folder / file)
            weight_map |= dict.fromkeys(own, file)
        if index:
            path = folder / "model.safetensors.index.json"
            path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return make


@pytest.fixture
def tensors():
    return llama_tensors
