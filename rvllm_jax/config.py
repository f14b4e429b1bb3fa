"""Checks a configuration as a whole and names its values, before anything is allocated."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from rvllm_jax.data.chat import TEMPLATES
from rvllm_jax.models.llama import DECODERS, LlamaConfig
from rvllm_jax.models.projector import PROJECTOR_KINDS
from rvllm_jax.models.resnet import RESNETS, ResNetConfig
from rvllm_jax.training.stages import INPUTS, OptimizerSpec, Stage
from rvllm_jax.types import VISUAL_KINDS, VisualLayout


class ConfigError(ValueError):
    """A configuration whose parts are unknown or do not fit together."""


@dataclasses.dataclass(frozen=True)
class Data:
    """`config.data`; configs/joint.py says what each key means."""

    videos: str
    conversations: str
    validation: str
    test: str
    store: str
    max_bad: float
    frames: int
    interval: int
    stride: int
    short_side: int
    crop: int
    encoding: str
    frames_per_record: int
    context: int
    questions: int
    independent_turns: bool
    template: str
    workers: int

    @property
    def step(self) -> int:
        """Stored frames from one frame of a clip to the next."""
        return self.interval // self.stride


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """`config.tokenizer`."""

    folder: str
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class Model:
    """`config.model`."""

    encoder: str
    norm: str
    tokens: str
    grid: int
    projector: str
    decoder: str
    dtype: str
    remat: str
    loss_chunk: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`config.evaluation`."""

    every: int
    clips: int
    probe_videos: int
    train_videos: int
    batch: int
    max_new: int
    controls: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked configuration."""

    name: str
    seed: int
    parallel: str
    mesh: dict[str, int]
    data: Data
    tokenizer: Tokenizer
    model: Model
    stages: tuple[Stage, ...]
    evaluation: Evaluation
    checkpoint_every: int
    checkpoint_keep: int
    log_every: int
    max_skipped: int

    @property
    def layout(self) -> VisualLayout:
        return VisualLayout(self.model.tokens, self.data.frames, self.model.grid)

    @property
    def resnet(self) -> ResNetConfig:
        return dataclasses.replace(RESNETS[self.model.encoder], norm=self.model.norm)

    @property
    def llama(self) -> LlamaConfig:
        """The decoder; the tiny one takes the vocabulary of the tokenizer trained for it."""
        decoder = DECODERS[self.model.decoder]
        if self.model.decoder == "tiny" and not self.tokenizer.folder:
            return dataclasses.replace(decoder, vocab_size=self.tokenizer.vocab_size)
        return decoder


TOP_KEYS = {
    *("name", "seed", "schedule", "parallel", "mesh", "data", "tokenizer", "model", "stages"),
    *("evaluation", "checkpoint", "log_every", "max_skipped"),
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
        values["table"] = tuple(tuple(row) for row in values["table"])
        stages.append(_section(Stage, {"name": name, **values}, where))
    return tuple(stages)


def resolve(config: ConfigDict) -> Recipe:
    """A ConfigDict -> the checked `Recipe`; ConfigError names the keys that do not fit."""
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
    )
    problems = [*_choices(recipe), *_numbers(recipe)] or _fit(recipe)
    if problems:
        raise ConfigError("the configuration does not fit together:\n- " + "\n- ".join(problems))
    return recipe


def _choices(recipe: Recipe) -> list[str]:
    table = [
        ("parallel", recipe.parallel, ("jit", "pmap")),
        ("data.encoding", recipe.data.encoding, ("raw", "jpeg")),
        ("data.template", recipe.data.template, tuple(TEMPLATES)),
        ("model.encoder", recipe.model.encoder, tuple(RESNETS)),
        ("model.norm", recipe.model.norm, ("batch", "group")),
        ("model.tokens", recipe.model.tokens, VISUAL_KINDS),
        ("model.projector", recipe.model.projector, tuple(PROJECTOR_KINDS)),
        ("model.decoder", recipe.model.decoder, tuple(DECODERS)),
        ("model.dtype", recipe.model.dtype, ("float32", "bfloat16", "float64")),
        ("model.remat", recipe.model.remat, ("none", "dots", "full")),
    ]
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        table.append((f"{where}.input", stage.input, INPUTS))
        table.append((f"{where}.schedule", stage.schedule, ("cosine", "constant")))
        for name, spec in stage.optimizers.items():
            table.append((f"{where}.optimizers.{name}.kind", spec.kind, ("sgd", "adamw")))
    return [
        f"config.{key}={value!r} is not one of {', '.join(choices)}"
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
    return [
        f"config.{key}={value} must be positive" for key, value in positive.items() if value < 1
    ]


def _fit(recipe: Recipe) -> list[str]:
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
    if data.context > recipe.llama.context:
        found.append(
            f"config.data.context={data.context} exceeds the {recipe.llama.context} positions of "
            f"config.model.decoder={recipe.model.decoder}"
        )
    if recipe.layout.tokens + 16 > data.context:
        found.append(
            f"config.model.tokens={recipe.model.tokens!r} makes {recipe.layout.tokens} visual "
            f"tokens of {data.frames} frames, which leave no room for a question in "
            f"config.data.context={data.context}; lower config.model.grid or config.data.frames"
        )
    side = recipe.resnet.output_size(data.crop)
    if recipe.model.tokens != "global" and recipe.model.grid > side:
        found.append(
            f"config.model.grid={recipe.model.grid} exceeds the {side} x {side} feature map that "
            f"config.model.encoder={recipe.model.encoder} makes of config.data.crop={data.crop}"
        )
    if data.videos != "shapes" and not data.conversations:
        found.append(
            "config.data.videos names a folder; config.data.conversations must name its JSON"
        )
    if recipe.parallel == "pmap" and (recipe.mesh["fsdp"], recipe.mesh["tensor"]) != (1, 1):
        found.append(
            "config.parallel='pmap' replicates the model; set mesh.fsdp and mesh.tensor to 1"
        )
    for stage in recipe.stages:
        if (stage.steps > 0) == (stage.epochs > 0):
            found.append(f"config.stages.{stage.name}: set either steps or epochs, the other to 0")
        if stage.batch % stage.accumulate:
            found.append(
                f"config.stages.{stage.name}.batch={stage.batch} is not a multiple of "
                f"accumulate={stage.accumulate}"
            )
    return found


def check_tokenizer(recipe: Recipe, vocab_size: int, folder: str) -> None:
    """Refuses a tokenizer whose ids the decoder's vocabulary does not hold."""
    if vocab_size > recipe.llama.vocab_size:
        raise ConfigError(
            f"the tokenizer at {folder} has {vocab_size} tokens, but config.model.decoder="
            f"{recipe.model.decoder} holds {recipe.llama.vocab_size}; give the decoder's own "
            "tokenizer by config.tokenizer.folder"
        )
