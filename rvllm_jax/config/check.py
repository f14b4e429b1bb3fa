"""Checks a configuration as a whole and names its values, before anything is allocated."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from rvllm_jax.config.schema import Data, Evaluation, Model, Recipe, Tokenizer
from rvllm_jax.config.stage import INPUTS, OptimizerSpec, Stage
from rvllm_jax.data.batches.clips import LONG, SHORT, VIEWS
from rvllm_jax.data.batches.source import EMBEDDED
from rvllm_jax.data.text.prompt import TEMPLATE_NAMES
from rvllm_jax.data.text.tokenizer import MIN_VOCAB
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.models.lora import LoRA
from rvllm_jax.models.projector import PROJECTOR_KINDS
from rvllm_jax.models.resnet import RESNETS
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import VISUAL_KINDS


class ConfigError(RvllmError, ValueError):
    """A configuration whose parts are unknown or do not fit together."""


TOP_KEYS = {
    *("name", "seed", "schedule", "parallel", "mesh", "data", "tokenizer", "model", "stages"),
    *("evaluation", "checkpoint", "log_every", "max_skipped"),
    "max_unreadable",
}


def _section(cls: type, values: Any, where: str) -> Any:
    values = dict(values)
    fields = dataclasses.fields(cls)
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    _check_keys(values, {f.name for f in fields}, needed, where)
    return cls(**values)


def _check_keys(values: dict, known: set[str], needed: set[str], where: str) -> None:
    unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; known are {sorted(known)}")
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; configs/joint.py shows every key")


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


def _stages(config: ConfigDict) -> tuple[Stage, ...]:
    names = [name.strip() for name in config.schedule.split(",") if name.strip()]
    missing = [name for name in names if name not in config.stages]
    if missing or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"config.schedule={config.schedule!r} must name stages of config.stages "
            f"({', '.join(config.stages)}), each once; not among them: {missing}"
        )
    stages = []
    for name in names:
        where, values = f"config.stages.{name}", dict(config.stages[name])
        _check_keys(values, set(values), {"table", "optimizers"}, where)
        values["optimizers"] = {
            key: _section(OptimizerSpec, spec, f"{where}.optimizers.{key}")
            for key, spec in values["optimizers"].items()
        }
        if (lora := values.pop("lora", None)) is not None:
            lora = _section(LoRA, lora, f"{where}.lora")
            values["lora"] = lora if lora.rank is not None else None
        values["table"] = tuple(tuple(row) for row in values["table"])
        stages.append(_section(Stage, {"name": name, **values}, where))
    return tuple(stages)


def resolve(config: ConfigDict | dict[str, Any]) -> Recipe:
    """A configuration -> the checked `Recipe`; ConfigError names the keys that do not fit."""
    config = ConfigDict(config)  # a dictionary is what config.json holds
    _check_keys(dict(config), TOP_KEYS, TOP_KEYS, "config")
    for name, keys in (("mesh", {"data", "fsdp", "tensor"}), ("checkpoint", {"every", "keep"})):
        _check_keys(dict(config[name]), keys, keys, f"config.{name}")
    recipe = Recipe(
        name=config.name,
        seed=config.seed,
        parallel=config.parallel,
        mesh=dict(config.mesh),
        data=_section(Data, config.data, "config.data"),
        tokenizer=_section(Tokenizer, config.tokenizer, "config.tokenizer"),
        model=_section(Model, config.model, "config.model"),
        stages=_stages(config),
        evaluation=_section(Evaluation, config.evaluation, "config.evaluation"),
        checkpoint_every=config.checkpoint.every,
        checkpoint_keep=config.checkpoint.keep,
        log_every=config.log_every,
        max_skipped=config.max_skipped,
        max_unreadable=config.max_unreadable,
    )
    problems = [*_choices(recipe), *_numbers(recipe), *_ranges(recipe)]
    problems = problems or [*_fit_data(recipe), *_fit_model(recipe), *_fit_stages(recipe)]
    if problems:
        raise ConfigError("the configuration does not fit together:\n- " + "\n- ".join(problems))
    return recipe


def _choices(recipe: Recipe) -> list[str]:
    table = [
        ("parallel", recipe.parallel, ("jit", "pmap")),
        ("data.encoding", recipe.data.encoding, ("raw", "jpeg")),
        ("data.short", recipe.data.short, SHORT),
        ("data.long", recipe.data.long, LONG),
        ("evaluation.test_clips", recipe.evaluation.test_clips, tuple(VIEWS)),
        ("data.template", recipe.data.template, TEMPLATE_NAMES),
        ("model.encoder", recipe.model.encoder, tuple(RESNETS)),
        ("model.norm", recipe.model.norm, ("batch", "group")),
        ("model.tokens", recipe.model.tokens, VISUAL_KINDS),
        ("model.projector", recipe.model.projector, tuple(PROJECTOR_KINDS)),
        ("model.decoder", recipe.model.decoder, (*DECODERS, *recipe.decoder_folder)),
        ("model.dtype", recipe.model.dtype, ("float32", "bfloat16", "float64")),
        ("model.remat", recipe.model.remat, ("none", "dots", "full")),
    ]
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        table.append((f"{where}.input", stage.input, INPUTS))
        table.append((f"{where}.schedule", stage.schedule, ("cosine", "constant")))
        for name, spec in stage.optimizers.items():
            own = f"{where}.optimizers.{name}"
            table.append((f"{own}.kind", spec.kind, ("sgd", "adamw")))
            table.append((f"{own}.moments", spec.moments, ("float32", "bfloat16")))
    return [
        f"config.{key}={value!r} is not one of {', '.join(choices)}"
        + (", and there is no such folder" if key == "model.decoder" else "")
        for key, value, choices in table
        if value not in choices
    ]


def _numbers(recipe: Recipe) -> list[str]:
    sections = {"data": recipe.data, "model": recipe.model, "evaluation": recipe.evaluation}
    may_be_zero = {"workers", "loss_chunk"}
    positive = {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in vars(values).items()
        if type(value) is int and key not in may_be_zero
    }
    positive |= {
        "checkpoint.every": recipe.checkpoint_every,
        "checkpoint.keep": recipe.checkpoint_keep,
        "log_every": recipe.log_every,
        "max_skipped": recipe.max_skipped,
        **{f"stages.{s.name}.batch": s.batch for s in recipe.stages},
        **{f"stages.{s.name}.accumulate": s.accumulate for s in recipe.stages},
    }
    found = [
        f"config.{key}={value} must be positive" for key, value in positive.items() if value < 1
    ]
    if recipe.max_unreadable < 0:
        found.append(f"config.max_unreadable={recipe.max_unreadable} must not be negative")
    return found


def _ranges(recipe: Recipe) -> list[str]:
    """The numbers that may be zero, or are no whole ones."""
    table = [
        ("seed", recipe.seed, 0, math.inf),
        ("data.workers", recipe.data.workers, 0, math.inf),
        ("data.max_bad", recipe.data.max_bad, 0, 1),
        ("model.loss_chunk", recipe.model.loss_chunk, 0, math.inf),
    ]
    for stage in recipe.stages:
        table += stage.ranges()
    return [
        f"config.{key}={value} must be {least} or more"
        + (f" and below {below:.3g}" if below < math.inf else "")
        for key, value, least, below in table
        if not least <= value < below
    ]


def _fit_data(recipe: Recipe) -> list[str]:
    data, found = recipe.data, []
    if data.interval % data.stride:
        found.append(
            f"config.data.stride={data.stride} must divide config.data.interval={data.interval}: "
            "only every stride-th frame is stored"
        )
    if data.crop > data.short_side:
        found.append(
            f"config.data.crop={data.crop} exceeds config.data.short_side={data.short_side}"
        )
    if data.videos != EMBEDDED and not data.conversations:
        found.append(
            "config.data.videos names a folder; config.data.conversations must name its JSON"
        )
    if data.videos == EMBEDDED and data.flip:
        found.append(
            f"config.data.flip=True mirrors videos, and config.data.videos={EMBEDDED!r} asks what "
            "moves left or right: the answers would be wrong; set it to False"
        )
    for key in ("conversations", "validation", "test"):
        if data.videos == EMBEDDED and getattr(data, key):
            found.append(
                f"config.data.{key}={getattr(data, key)!r} would be ignored: config.data.videos="
                f"{EMBEDDED!r} brings annotations of its own; name the folder of your videos there"
            )
    return found


def _fit_model(recipe: Recipe) -> list[str]:
    data, model, found = recipe.data, recipe.model, []
    if model.dtype == "float64" and not jax.config.jax_enable_x64:
        found.append(
            "config.model.dtype='float64' would be computed in float32, as JAX has 64 bits "
            "switched off: set the environment variable JAX_ENABLE_X64=1, or choose float32"
        )
    if not recipe.tokenizer.folder and recipe.tokenizer.vocab_size < MIN_VOCAB:
        found.append(
            f"config.tokenizer.vocab_size={recipe.tokenizer.vocab_size} is too small to train a "
            f"tokenizer: special tokens and the 256 bytes need {MIN_VOCAB} or more"
        )
    if not recipe.tokenizer.folder and recipe.tokenizer.vocab_size > recipe.llama.vocab_size:
        found.append(
            f"config.tokenizer.vocab_size={recipe.tokenizer.vocab_size} exceeds the "
            f"{recipe.llama.vocab_size} tokens that config.model.decoder={model.decoder} holds"
        )
    longest, positions = data.context + recipe.evaluation.max_new, recipe.llama.context
    if longest > positions:
        found.append(
            f"config.data.context={data.context} and an answer of config.evaluation.max_new="
            f"{recipe.evaluation.max_new} tokens behind it exceed the {positions} positions of "
            f"config.model.decoder={model.decoder}; lower one of them"
        )
    if recipe.layout.tokens + 16 > data.context:
        found.append(
            f"config.model.tokens={model.tokens!r} makes {recipe.layout.tokens} visual "
            f"tokens of {data.frames} frames, which leave no room for a question in "
            f"config.data.context={data.context}; lower config.model.grid or config.data.frames"
        )
    side = recipe.resnet.output_size(data.crop)
    if model.tokens != "global" and model.grid > side:
        found.append(
            f"config.model.grid={model.grid} exceeds the {side} x {side} feature map that "
            f"config.model.encoder={model.encoder} makes of config.data.crop={data.crop}"
        )
    return found


def _fit_stages(recipe: Recipe) -> list[str]:
    found = []
    if recipe.parallel == "pmap" and (recipe.mesh["fsdp"], recipe.mesh["tensor"]) != (1, 1):
        found.append(
            "config.parallel='pmap' replicates the model; set mesh.fsdp and mesh.tensor to 1"
        )
    if recipe.parallel == "pmap" and recipe.mesh["data"] not in (-1, jax.local_device_count()):
        found.append(
            f"config.parallel='pmap' takes all {jax.local_device_count()} devices of this host; "
            f"set config.mesh.data={recipe.mesh['data']} to -1"
        )
    for stage in recipe.stages:
        found += stage.faults()
        if stage.lora is not None:
            where = f"config.stages.{stage.name}.lora"
            found += stage.lora.faults(recipe.llama, where)
            if stage.lora != recipe.lora:
                found.append(
                    f"{where} is {stage.lora}, and an earlier stage's {recipe.lora}: a decoder has "
                    "one set of adapters; make them the same"
                )
    return found
