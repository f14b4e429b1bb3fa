"""A configuration checked as a whole, before anything is allocated: plain values -> `Recipe`."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rvllm_jax.config import keys
from rvllm_jax.config.schema import (
    CheckpointKeys,
    DataKeys,
    EvaluationKeys,
    LoRAKeys,
    ModelKeys,
    OptimizerSpec,
    Recipe,
    Stage,
    TokenizerKeys,
)
from rvllm_jax.data.shapes.build import EMBEDDED
from rvllm_jax.data.text.tokenizer import MIN_VOCAB
from rvllm_jax.models.lora import LoRA
from rvllm_jax.system import file_layout
from rvllm_jax.system.errors import RvllmError


class ConfigError(RvllmError, ValueError):
    """A configuration whose parts are unknown or do not fit together."""


def refuse_unknown(config: ConfigDict, keys: Sequence[str]) -> None:
    """Raises ConfigError for the first of the dotted keys ("data.frames") that `config` lacks."""
    for key in keys:
        node, where = config, "config"
        for part in (part.partition("[")[0] for part in key.split(".")):
            if not isinstance(node, ConfigDict):
                raise ConfigError(f"--config.{key}: {where} is a single value; set it by --{where}")
            if part not in node:
                near = difflib.get_close_matches(part, node, 1)
                raise ConfigError(
                    f"--config.{key}: {where} has no key {part!r}; correct it"
                    f"{f', perhaps to {near[0]!r}' if near else ''}. Known are {sorted(node)}"
                )
            node, where = node[part], f"{where}.{part}"


def resolve(config: ConfigDict | Mapping[str, Any], where: str | Path = "") -> Recipe:
    """A configuration -> the checked `Recipe`; ConfigError names the keys that do not fit.

    config: as configs/joint.py makes it, or the plain dictionary that config.json holds, migrated
    (migrate.py). where: the file that it was read from, for messages.
    """
    try:
        return _resolve(config)
    except ConfigError as error:
        if not where:
            raise
        raise ConfigError(f"{where}: {error}") from None


def _resolve(config: ConfigDict | Mapping[str, Any]) -> Recipe:
    values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    values.pop(file_layout.RUN.key, None)  # of config.json
    _check_names(Recipe, values, "config")
    values["stages"] = _scheduled(values["schedule"], values["stages"])
    _check_sections(Recipe, values, "")
    _refuse(keys.faults(Recipe, values))
    recipe = _make_recipe(values)
    _refuse([*_fit_data(recipe), *_fit_model(recipe), *_fit_devices(recipe), *_fit_stages(recipe)])
    return recipe


def _refuse(faults: list[str]) -> None:
    if faults:
        raise ConfigError("the configuration does not fit together:\n- " + "\n- ".join(faults))


def _check_names(schema: type, values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}={values!r:.80} must be a section of keys")
    known, needed = keys.names_of(schema)
    unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; known are {sorted(known)}")
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; configs/joint.py shows every key")


def _check_sections(schema: type, values: Mapping[str, Any], where: str) -> None:
    for inner, section, path in keys.sections_in(schema, values, where):
        _check_names(inner, section, f"config.{path}")
        _check_sections(inner, section, path)


def _scheduled(schedule: str, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of the stages that run, in their order."""
    names = [name.strip() for name in schedule.split(",") if name.strip()]
    missing = [name for name in names if name not in stages]
    if missing or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"config.schedule={schedule!r} must name stages of config.stages "
            f"({', '.join(stages)}), each once; not among them: {missing}"
        )
    return {name: stages[name] for name in names}


def _make_recipe(values: dict[str, Any]) -> Recipe:
    made = {
        "mesh": dict(values["mesh"]),
        "data": DataKeys(**values["data"]),
        "tokenizer": TokenizerKeys(**values["tokenizer"]),
        "model": ModelKeys(**values["model"]),
        "stages": tuple(_make_stage(*item) for item in values["stages"].items()),
        "evaluation": EvaluationKeys(**values["evaluation"]),
        "checkpoint": CheckpointKeys(**values["checkpoint"]),
    }
    return Recipe(**{**values, **made})


def _make_stage(name: str, values: Mapping[str, Any]) -> Stage:
    optimizers = {key: OptimizerSpec(**spec) for key, spec in values["optimizers"].items()}
    lora = LoRAKeys(**values.get("lora") or {})
    made = {
        "table": tuple(tuple(row) for row in values["table"]),
        "optimizers": optimizers,
        "lora": LoRA(**vars(lora)) if lora.rank is not None else None,
    }
    return Stage(name=name, **{**values, **made})


def _fit_data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    if data.interval % data.stride:
        yield (
            f"config.data.stride={data.stride} must divide config.data.interval={data.interval}: "
            "only every stride-th frame is stored"
        )
    if data.crop > data.short_side:
        yield f"config.data.crop={data.crop} exceeds config.data.short_side={data.short_side}"
    if data.videos != EMBEDDED and not data.conversations:
        yield "config.data.videos names a folder; config.data.conversations must name its JSON"
    if data.videos == EMBEDDED and data.flip:
        yield (
            f"config.data.flip=True mirrors videos, and config.data.videos={EMBEDDED!r} asks what "
            "moves left or right: the answers would be wrong; set it to False"
        )
    for key in ("conversations", "validation", "test"):
        if data.videos == EMBEDDED and getattr(data, key):
            yield (
                f"config.data.{key}={getattr(data, key)!r} would be ignored: config.data.videos="
                f"{EMBEDDED!r} brings annotations of its own; name the folder of your videos there"
            )


def _fit_model(recipe: Recipe) -> Iterator[str]:
    data, model = recipe.data, recipe.model
    if model.dtype == "float64" and not jax.config.jax_enable_x64:
        yield (
            "config.model.dtype='float64' would be computed in float32, as JAX has 64 bits "
            "switched off: set the environment variable JAX_ENABLE_X64=1, or choose float32"
        )
    if not recipe.tokenizer.folder and recipe.tokenizer.vocab_size < MIN_VOCAB:
        yield (
            f"config.tokenizer.vocab_size={recipe.tokenizer.vocab_size} is too small to train a "
            f"tokenizer: special tokens and the 256 bytes need {MIN_VOCAB} or more"
        )
    if not recipe.tokenizer.folder and recipe.tokenizer.vocab_size > recipe.llama.vocab_size:
        yield (
            f"config.tokenizer.vocab_size={recipe.tokenizer.vocab_size} exceeds the "
            f"{recipe.llama.vocab_size} tokens that config.model.decoder={model.decoder} holds"
        )
    longest, positions = data.context + recipe.evaluation.max_new, recipe.llama.context
    if longest > positions:
        yield (
            f"config.data.context={data.context} and an answer of config.evaluation.max_new="
            f"{recipe.evaluation.max_new} tokens behind it exceed the {positions} positions of "
            f"config.model.decoder={model.decoder}; lower one of them"
        )
    if recipe.layout.tokens + 16 > data.context:
        yield (
            f"config.model.tokens={model.tokens!r} makes {recipe.layout.tokens} visual "
            f"tokens of {data.frames} frames, which leave no room for a question in "
            f"config.data.context={data.context}; lower config.model.grid or config.data.frames"
        )
    side = recipe.resnet.output_size(data.crop)
    if model.tokens != "global" and model.grid > side:
        yield (
            f"config.model.grid={model.grid} exceeds the {side} x {side} feature map that "
            f"config.model.encoder={model.encoder} makes of config.data.crop={data.crop}"
        )


def _fit_devices(recipe: Recipe) -> Iterator[str]:
    """pmap; whether a mesh covers the devices is known when it is made."""
    if recipe.parallel == "pmap" and (recipe.mesh["fsdp"], recipe.mesh["tensor"]) != (1, 1):
        yield "config.parallel='pmap' replicates the model; set mesh.fsdp and mesh.tensor to 1"
    if recipe.parallel == "pmap" and recipe.mesh["data"] not in (-1, jax.local_device_count()):
        yield (
            f"config.parallel='pmap' takes all {jax.local_device_count()} devices of this host; "
            f"set config.mesh.data={recipe.mesh['data']} to -1"
        )


def _fit_stages(recipe: Recipe) -> Iterator[str]:
    """Length, batch and adapters; the table meets the model's parameters in training/stages.py."""
    for stage in recipe.stages:
        where = f"config.stages.{stage.name}"
        if (stage.steps > 0) == (stage.epochs > 0):
            yield f"{where}: set either steps or epochs, the other to 0"
        elif stage.warmup >= stage.steps > 0:
            yield (
                f"{where}.warmup={stage.warmup} is not below {where}.steps={stage.steps}: the "
                "learning rate would never reach its peak; lower the one or raise the other"
            )
        if stage.batch % stage.accumulate:
            yield f"{where}.batch={stage.batch} is not a multiple of accumulate={stage.accumulate}"
        if stage.lora is None:
            continue
        yield from stage.lora.faults(recipe.llama, f"{where}.lora")
        if stage.lora != recipe.lora:
            yield (
                f"{where}.lora is {stage.lora}, and an earlier stage's {recipe.lora}: a decoder "
                "has one set of adapters; make them the same"
            )
