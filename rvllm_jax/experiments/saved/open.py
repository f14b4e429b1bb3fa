"""A trained model opened for use: out of a run's working directory, or an exported folder."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from rvllm_jax.config import migrate
from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError, resolve
from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.text.template import Template
from rvllm_jax.experiments.saved.describe import config_of_export
from rvllm_jax.experiments.saved.tokenizer import check_tokenizer, check_trained_by
from rvllm_jax.models.functional import Arrays, FunctionalModel, checksum
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.sharding import layouts
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.system import file_layout
from rvllm_jax.system.fingerprint import SHORT, json_digest, recorded
from rvllm_jax.training.checkpoint import newest, read_meta, read_model
from rvllm_jax.training.workdir import check_trained_with, is_bound, read_config, with_kept_decoder
from rvllm_jax.weights import load
from rvllm_jax.weights.open import OURS, open_weights
from rvllm_jax.weights.safetensors import WeightsError

ALL_DEVICES = {"data": -1, "fsdp": 1, "tensor": 1}
# Cast to the dtype of the computation wherever they are used.
COMPUTED = ("kernel", "embedding", "lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """A model on disk, of which no array was read yet."""

    path: Path
    is_run: bool
    best: str
    recipe: Recipe
    tokenizer: tokenizers.Tokenizer

    @functools.cached_property
    def template(self) -> Template:
        return prompt.find_template(self.recipe.data.template, self.tokenizer)

    @property
    def identity(self) -> str:
        """Names the arrays: the folder, and of a run the checkpoint."""
        return str(newest(self.path, self.best) if self.is_run else self.path.resolve())


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model whose arrays are on the devices, with all that asking it takes.

    `source` says in words where it came from, `step` is the checkpoint's (0: an exported folder).
    """

    path: Path
    recipe: Recipe
    model: FunctionalModel
    params: Arrays
    stats: Arrays
    tokenizer: tokenizers.Tokenizer
    layout: JitLayout
    step: int
    source: str

    @functools.cached_property
    def template(self) -> Template:
        return prompt.find_template(self.recipe.data.template, self.tokenizer)

    @functools.cached_property
    def module(self) -> VideoLLM:
        return self.model.merge(self.params, self.stats)

    @functools.cached_property
    def checksum(self) -> str:
        """Of all arrays; with several hosts each one calls it."""
        return checksum(self.params | self.stats)

    @property
    def fingerprint(self) -> str:
        """Names its content, see `fingerprint`."""
        return fingerprint(self.checksum, self.tokenizer, self.template)


def fingerprint(arrays: str, tokenizer: tokenizers.Tokenizer, template: Template) -> str:
    """Names the content of a model, wherever it lies: what stores an answer, a verdict or a score
    says by this which model it is of.

    arrays: the checksum of parameters and statistics, the former in their `computed_dtype`.
    """
    ends = repr(prompt.stop_ids(tokenizer, template))
    return json_digest([arrays, tokenizer.fingerprint, recorded(template, {}), ends], length=SHORT)


def how_computed(recipe: Recipe) -> dict[str, Any]:
    """What decides the answers of a model beside its content: how a video becomes what it sees, and
    how it computes. JSON values; the same of a run and of its export, wherever they lie.

    Stored beside answers; a name that they lack, as those of earlier versions do, is not known.
    """
    data, model = recipe.data, recipe.model
    shown = ("frames", "interval", "stride", "short", "long", "short_side", "crop", "encoding")
    return {
        **{name: getattr(data, name) for name in shown},
        **{name: getattr(model, name) for name in ("tokens", "grid", "dtype")},
        "encoder": recorded(recipe.resnet, {}),
        "decoder": recorded(recipe.llama, {}),
    }


def open_model(
    path: str | Path, *, best: str = "", mesh: Mapping[str, int] = ALL_DEVICES
) -> LoadedModel:
    """`describe_model` and `read_arrays` in one."""
    return read_arrays(describe_model(path, best=best, mesh=mesh))


def describe_model(
    path: str | Path,
    *,
    best: str = "",
    mesh: Mapping[str, int] = ALL_DEVICES,
    template: str = "",
) -> ModelDescription:
    """The model of a working directory (its newest checkpoint, or the best of stage `best`), or of
    a folder that `convert` wrote of one; earlier versions' too.

    template: a name to use in place of the recipe's own. Raises WeightsError, CheckpointError,
    ConfigError, LayoutError, WorkdirError, ChatTemplateError or TokenizerError; allocates nothing.
    """
    path = Path(path)
    is_run = is_bound(path)
    config = config_of_run(path, best) if is_run else _config_of_export(path)
    if best and not is_run:
        raise WeightsError(f"{path}: an exported folder has no best checkpoint of stage {best!r}")
    if template:
        config["data"]["template"] = template
    where = path / ("config.json" if is_run else OURS)
    recipe = dataclasses.replace(resolve(config, where), mesh=dict(mesh))
    folder = path / "tokenizer" if is_run else path
    tokenizer = tokenizers.load(folder)
    check_tokenizer(recipe, tokenizer, str(folder))
    if is_run:
        check_trained_by(folder, tokenizer, *read_meta(path, best))
    description = ModelDescription(path, is_run, best, recipe, tokenizer)
    _ = description.template, description.identity  # refused where they are not there
    return description


def read_arrays(description: ModelDescription) -> LoadedModel:
    """The model with its arrays: over the recipe's mesh as in training, matrices in the dtype of
    the computation.

    Raises WeightsError or CheckpointError before an array is allocated, except CheckpointError
    where the checkpoint's own files are damaged.
    """
    path, best, recipe = description.path, description.best, description.recipe
    model, layout = build_model(recipe), layouts.make("jit", recipe.mesh)
    shardings = layout.array_shardings(model.params, model.stats)
    if description.is_run:
        params, stats, step, source = read_run(path, best, model, shardings[0] | shardings[1])
    else:
        arrays = _read_export(path, recipe, model, shardings[0] | shardings[1])
        params, stats = ({p: arrays[p] for p in part} for part in (model.params, model.stats))
        source, step = f"{path}: an exported model", 0
    params = {p: x.astype(computed_dtype(p, x, recipe)) for p, x in params.items()}
    return LoadedModel(
        path, recipe, model, params, stats, description.tokenizer, layout, step, source
    )


def config_of_run(workdir: Path, best: str = "") -> dict[str, Any]:
    """The configuration of a run, where it is that of the newest checkpoint, or the best of stage
    `best`; raises ConfigError, CheckpointError or WorkdirError."""
    check_trained_with(workdir, *read_meta(workdir, best))
    return with_kept_decoder(read_config(workdir), workdir)


def _config_of_export(path: Path) -> dict[str, Any]:
    if not (path / OURS).is_file():
        raise WeightsError(
            f"{path}: neither a working directory with a checkpoint nor an exported model "
            f"({OURS} is not there); train one, or `python -m rvllm_jax.convert --source=RUN`"
        )
    description = file_layout.MODEL.read(path / OURS, error=ConfigError)
    if "recipe" not in description:
        raise WeightsError(
            f"{path}: holds {', '.join(description) or 'nothing'}, not a whole video model; train "
            f"from it (--config.model.weights={path}), then convert the run"
        )
    return config_of_export(description["recipe"], path)


def computed_dtype(path: str, leaf: Any, recipe: Recipe) -> np.dtype:
    """In which a parameter of any shape is read to be asked."""
    computed = path.rpartition("/")[2] in COMPUTED
    return np.dtype(recipe.model.dtype if computed else leaf.dtype)


def _read_export(path: Path, recipe: Recipe, model: FunctionalModel, shardings: Mapping) -> Arrays:
    entries = open_weights(path).entries
    targets = model.params | model.stats
    load.check(entries, targets, where=str(path))
    targets = {
        p: jax.ShapeDtypeStruct(
            x.shape, computed_dtype(p, entries[p], recipe) if p in model.params else x.dtype
        )
        for p, x in targets.items()
    }
    return load.load(entries, targets, shardings)


def read_run(
    workdir: Path,
    best: str,
    model: FunctionalModel,
    shardings: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Arrays, Arrays, int, str]:
    """(params, stats, step, where they came from in words) of a run of `model`; see `read_model`.

    Raises CheckpointError, and WeightsError where the arrays are not those of the model.
    """
    params, stats, step = read_model(workdir, best, shardings)
    params = migrate.with_added_parameters(params, model.params, shardings.get)
    _check_same(params | stats, model.params | model.stats, workdir)
    source = f"{workdir}: the {f'best of {best}' if best else 'checkpoint'}, step {step}"
    return params, stats, step, source


def _check_same(arrays: Mapping[str, Any], targets: Mapping[str, Any], where: Path) -> None:
    wrong = sorted(arrays.keys() ^ targets.keys())
    wrong += [p for p in arrays.keys() & targets.keys() if arrays[p].shape != targets[p].shape]
    if wrong:
        raise WeightsError(
            f"{where}: its checkpoint is not of its config.json: {', '.join(wrong[:8])}"
        )
