"""The sizes in a Hugging Face config.json as our configurations, and back.

By hand and not by transformers' LlamaConfig (5.23). To import it takes a core 10 s where torch is
installed, at every start from a folder. It would save the checks of types, some 25 of these lines:
to a key that is absent it gives Llama-7B's value, it knows nothing of the activations and rotary
scalings that this decoder lacks, takes one of two rotary sets that disagree, and writes the rotary
keys in the new place alone.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.models.llama_config import LinearScaling, LlamaConfig, RopeScaling
from rvllm_jax.system.atomic import read_json
from rvllm_jax.weights.safetensors import WeightsError

# Our names of what a config.json holds, in the order of its keys.
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "context": "max_position_embeddings",
}
NEEDED = SIZES.keys() - {"kv_heads", "head_dim"}
FIRST_CONTEXT = "max_sequence_length"  # in the first Llama files
FLAGS = {"tied": "tie_word_embeddings", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
LLAMA3 = {  # of its rotary scaling
    **{name: name for name in ("factor", "low_freq_factor", "high_freq_factor")},
    "original_context": "original_max_position_embeddings",
}
# LLaVA files leave out of `text_config` what equals transformers' defaults: those of Llama-7B.
LLAVA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}


def read_llama_config(folder: str | Path) -> LlamaConfig:
    """`llama_config` of a folder's config.json, or of the model.json of a folder of ours."""
    path = Path(folder) / "config.json"
    if (ours := path.with_name("model.json")).is_file():
        path = ours
    values = read_json(path, error=WeightsError)
    if path == ours and not isinstance(values := values.get("decoder"), dict):
        raise WeightsError(f"{path}: holds no decoder")
    return llama_config(values, str(path))


def llama_config(values: Mapping[str, Any], where: str) -> LlamaConfig:
    """The decoder of a config.json (its `text_config`, where it has one).

    Raises WeightsError, naming the file `where`: a size is missing or no positive number, a choice
    is neither true nor false, the activation is not SiLU, or the rotary scaling is neither linear
    nor Llama 3's.
    """
    if "text_config" in values:
        values = _text_values(values, where)
    if (act := values.get("hidden_act", "silu")) != "silu":
        raise WeightsError(f"{where}: hidden_act={act!r}; this decoder has 'silu' only")
    keys = dict(SIZES)
    if keys["context"] not in values and FIRST_CONTEXT in values:
        keys["context"] = FIRST_CONTEXT
    sizes = {
        name: _size(values, key, where)
        for name, key in keys.items()
        if name in NEEDED or values.get(key) is not None
    }
    sizes.setdefault("kv_heads", sizes["heads"])
    sizes.setdefault("head_dim", sizes["width"] // sizes["heads"])
    theta, scaling = _rope(values, where)
    try:
        return LlamaConfig(
            **sizes,
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=float(_number(values, "rms_norm_eps", where)),
            **{name: _flag(values, key, where) for name, key in FLAGS.items()},
        )
    except WeightsError:  # which names the file already
        raise
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error


def llama_values(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The config.json from which transformers makes this decoder; `dtype` is that of the file.

    The rotary keys stand in the old and in the new place, for older and newer readers.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        rope = {"rope_type": "linear", "factor": scaling.factor}
    elif scaling is not None:
        llama3 = {key: getattr(scaling, name) for name, key in LLAMA3.items()}
        rope = {"rope_type": "llama3", **llama3}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **{key: getattr(config, name) for name, key in SIZES.items()},
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        **{key: getattr(config, name) for name, key in FLAGS.items()},
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def _text_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The decoder's part of a LLaVA's config.json, whole."""
    text = values["text_config"]
    if not isinstance(text, Mapping):
        raise WeightsError(f"{where}: text_config={text!r}, expected an object")
    if (kind := text.get("model_type", "llama")) != "llama":
        raise WeightsError(
            f"{where}: the decoder in text_config is a {kind!r}; this one is a 'llama'"
        )
    # transformers writes at the top what it does, and may leave False below.
    tied = [_flag(level, "tie_word_embeddings", where) for level in (text, values)]
    return {**LLAVA_DEFAULTS, **text, "tie_word_embeddings": any(tied)}


def _rope(values: Mapping[str, Any], where: str):
    """rope_theta, and the scaling: older files hold it in `rope_scaling`, newer ones hold both in
    `rope_parameters`. transformers takes the first where both stand, and here they must agree.
    """
    sets = {k: values[k] for k in ("rope_scaling", "rope_parameters") if values.get(k)} or {"": {}}
    first, *others = [_rope_set(rope, values, where) for rope in sets.values()]
    if any(other != first for other in others):
        raise WeightsError(
            f"{where}: rope_scaling={sets['rope_scaling']!r} and rope_parameters="
            f"{sets['rope_parameters']!r} are different rotary embeddings (the first has "
            f"rope_theta={first[0]:g}); leave the one that the weights were trained with"
        )
    return first


def _rope_set(rope: Any, values: Mapping[str, Any], where: str):
    if not isinstance(rope, Mapping) or any(isinstance(x, Mapping) for x in rope.values()):
        raise WeightsError(f"{where}: rotary parameters {rope!r}, expected one set")
    theta = rope.get("rope_theta", values.get("rope_theta"))
    theta = float(_number({"rope_theta": 1e4 if theta is None else theta}, "rope_theta", where))
    share = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise WeightsError(
            f"{where}: partial_rotary_factor={share!r}; this decoder turns whole heads"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(float(_number(rope, "factor", where)))
    if kind == "llama3":
        *factors, context = LLAMA3.values()
        numbers = [float(_number(rope, key, where)) for key in factors]
        return theta, RopeScaling(*numbers, _size(rope, context, where))
    raise WeightsError(f"{where}: rotary scaling {kind!r}; this decoder has 'linear' and 'llama3'")


def _number(values: Mapping[str, Any], key: str, where: str) -> float:
    if key not in values:
        raise WeightsError(
            f"{where}: needs {key!r}, which is not there; take the config.json that was published "
            "with the weights"
        )
    value = values[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise WeightsError(f"{where}: {key}={value!r}, expected a positive number")
    return value


def _size(values: Mapping[str, Any], key: str, where: str) -> int:
    value = _number(values, key, where)
    if value != int(value):
        raise WeightsError(f"{where}: {key}={value!r}, expected a whole number")
    return int(value)


def _flag(values: Mapping[str, Any], key: str, where: str) -> bool:
    """False where the key is absent or null. A text would count as true, "false" too."""
    value = values.get(key)
    if not isinstance(value, bool | None):
        raise WeightsError(
            f"{where}: {key}={value!r}, expected true or false, without quotes; take the "
            "config.json that was published with the weights"
        )
    return bool(value)
