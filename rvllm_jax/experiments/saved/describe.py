"""What weights are: the model.json of a source or of a run, and the arrays that one describes."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.config import migrate
from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError, resolve
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.projector import Projector
from rvllm_jax.models.resnet import ResNet, ResNetConfig
from rvllm_jax.types import VisualLayout
from rvllm_jax.weights.check import PROJECTOR
from rvllm_jax.weights.hf_config import llama_config, llama_values
from rvllm_jax.weights.infer import resnet_shape
from rvllm_jax.weights.open import OURS, Weights
from rvllm_jax.weights.safetensors import WeightsError


def describe(resnet, llama, projector, layout, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The model.json of a whole video model; `recipe` is the run's configuration."""
    return {
        "encoder": dataclasses.asdict(resnet),
        "decoder": llama_values(llama, "float32"),
        "projector": projector,
        "layout": dataclasses.asdict(layout),
        "recipe": dict(recipe),
    }


def describe_weights(weights: Weights) -> dict[str, Any]:
    """The model.json of a source: which parts it holds, and their sizes."""
    if weights.ours:
        return dict(weights.config)
    description: dict[str, Any] = {}
    rooms = {path.partition("/")[0] for path in weights.entries}
    if "encoder" in rooms:
        shape = resnet_shape(weights)
        description["encoder"] = dataclasses.asdict(ResNetConfig(*shape))
    if "decoder" in rooms:
        llama = llama_config(weights.config, str(weights.path / "config.json"))
        dtype = next(x for p, x in weights.entries.items() if p.startswith("decoder/")).dtype.name
        description["decoder"] = llama_values(llama, dtype)
    if "projector" in rooms:
        two = "projector/linear_2/kernel" in weights.entries
        description["projector"] = "mlp2x_gelu" if two else "linear"
        if PROJECTOR not in weights.entries:
            raise WeightsError(f"{weights.path}: its projector lacks the kernel of its first layer")
        description["features"], description["width"] = weights.entries[PROJECTOR].shape
        if (act := weights.config.get("projector_hidden_act", "gelu")) != "gelu":
            raise WeightsError(f"{weights.path}: projector_hidden_act={act!r}; here is only 'gelu'")
    return description


def config_of_export(recipe: Any, folder: Path) -> dict[str, Any]:
    """The configuration in the model.json of `folder`, which brings the decoder's sizes and the
    tokenizer itself. Raises ConfigError."""
    parts = [recipe.get(key) for key in ("model", "tokenizer")] if isinstance(recipe, dict) else [0]
    if not all(isinstance(part, dict) for part in parts):
        raise ConfigError(
            f"{folder / 'model.json'}: its recipe is {recipe!r:.80}; restore the file"
        )
    config = migrate.current(recipe)
    config["model"] |= {"decoder": str(folder), "weights": str(folder), "random": ""}
    config["tokenizer"]["folder"] = str(folder)
    return config


def expected(description: Mapping[str, Any], where: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """The paths, shapes and dtypes of the parts that the model.json of `where` describes.

    Raises WeightsError or ConfigError where it describes no such parts.
    """
    folder = where if where.is_dir() else where.parent
    try:
        if "recipe" in description:
            config = config_of_export(description["recipe"], folder)
            model = build_model(resolve(config, folder / OURS))
            return model.params | model.stats
        arrays = {}
        for name, make in _parts(description, str(folder / OURS)).items():
            model = FunctionalModel.of(make)
            arrays |= {f"{name}/{path}": x for path, x in (model.params | model.stats).items()}
    except (ConfigError, WeightsError):  # which say what is wrong
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder / OURS}: does not describe a model ({error}); restore it, or convert again"
        ) from error
    return arrays


def _parts(description: Mapping[str, Any], where: str) -> dict[str, Callable]:
    """What makes each part."""
    parts: dict[str, Callable] = {}
    if "encoder" in description:
        resnet = resnet_config(description["encoder"])
        parts["encoder"] = lambda rngs: ResNet(resnet, rngs=rngs)
    if "decoder" in description:
        llama = llama_config(description["decoder"], where)
        parts["decoder"] = lambda rngs: Llama(llama, rngs=rngs)
    if "projector" in description:
        kind, features = description["projector"], description["features"]
        width = llama.width if "decoder" in description else description.get("width", 0)
        layout = VisualLayout(**description["layout"]) if "layout" in description else None
        parts["projector"] = lambda rngs: Projector(features, width, kind, layout, rngs=rngs)
    return parts


def resnet_config(values: Mapping[str, Any]) -> ResNetConfig:
    """The encoder of a model.json, or of `describe_weights`."""
    return ResNetConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
