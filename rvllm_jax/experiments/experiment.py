"""One experiment opened from a recipe: its data, tokenizer, model and layout."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import NamedTuple

from absl import logging

from rvllm_jax.config.build import build_model
from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.packing import ContextError
from rvllm_jax.data.batches.source import TrainingData, open_data
from rvllm_jax.data.shapes import build as shapes
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.text.template import Template
from rvllm_jax.experiments.saved.tokenizer import find_tokenizer, open_tokenizer
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.grouping import Grouping, videos_a_batch
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.system import progress
from rvllm_jax.training.resume import open_start
from rvllm_jax.training.stages import micro_batch_note, open_layout
from rvllm_jax.training.workdir import is_bound, keep_decoder, keep_start
from rvllm_jax.types import Example


class RunDatasets(NamedTuple):
    """What a run reads of its data."""

    train: dict[str, Dataset]  # by stage.input
    validation: dict[str, Dataset]  # by stage.input
    probed: dict[str, Dataset]  # by stage.input; asked beside each validation loss
    asked: dict[str, Dataset]  # by split; asked at the end


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that training and evaluation share."""

    recipe: Recipe
    workdir: Path
    source: TrainingData
    tokenizer: tokenizers.Tokenizer
    model: FunctionalModel
    layout: Layout

    @classmethod
    def open(cls, recipe: Recipe, workdir: Path) -> "Experiment":
        """Traces the model and prepares the data, or reuses what exists.

        What does not fit the model, the devices or the vocabulary is refused before the videos are
        decoded, which may take hours.
        """
        data, model = recipe.data, build_model(recipe)
        layout = open_layout(recipe, model)
        for stage in recipe.stages:
            if note := micro_batch_note(stage, model.params, recipe.model.norm):
                logging.info(note)
        find_tokenizer(recipe, workdir)
        if not is_bound(workdir):  # afterwards the folders may go
            open_start(recipe.model.weights, recipe.model.random, model)
        workers, shown = os.cpu_count() or 1, progress.bar if HERE.is_first else None
        with HERE.first_then_others("preparing the data"):
            videos = data.videos
            annotations = {
                "train": data.conversations, "validation": data.validation, "test": data.test,
            }  # fmt: skip
            if videos == shapes.EMBEDDED:
                how = dict(workers=workers, progress=shown and shown("render"))
                videos, annotations = shapes.open_embedded(data.store, **how)
            source = open_data(
                videos,
                annotations,
                data.store_options,
                root=data.store,
                max_bad=data.max_bad,
                workers=workers,
                progress=shown,
            )
            tokenizer = open_tokenizer(recipe, source, workdir)
            keep_decoder(recipe, workdir)
            keep_start(recipe, workdir)
        return cls(recipe, workdir, source, tokenizer, model, layout)

    @functools.cached_property
    def template(self) -> Template:
        return prompt.find_template(self.recipe.data.template, self.tokenizer)

    @functools.cached_property
    def datasets(self) -> RunDatasets:
        """All datasets of the run, made before training: what does not fit fails then.

        Raises DatasetError, and one ContextError for every stage.input and split.
        """
        splits, evaluation = self.source.splits, self.recipe.evaluation
        validation = (splits.get("validation") or splits["train"])[: evaluation.clips]
        asked = {"train": splits["train"][: evaluation.train_videos]}
        asked |= {split: splits[split] for split in ("test", "heldout") if split in splits}
        inputs = dict.fromkeys(stage.input for stage in self.recipe.stages)
        parts = splits["train"], validation, validation[: evaluation.probe_videos]
        wanted = [{i: (examples, i) for i in inputs} for examples in parts]
        wanted.append({split: (examples, "video") for split, examples in asked.items()})
        faults: dict[str, tuple[int, str]] = {}

        def make(examples: list[Example], input: str) -> Dataset | None:
            try:
                return self.dataset(examples, input)
            except ContextError as error:
                faults[input] = max(error.faults[input], faults.get(input, (0, "")))

        made = [{key: make(*what) for key, what in part.items()} for part in wanted]
        if faults:
            raise ContextError(self.recipe.data.context, faults)
        return RunDatasets(*made)

    def dataset(self, examples: list[Example], input: str = "video") -> Dataset:
        options = dataclasses.replace(self.recipe.dataset_options, input=input)
        return Dataset(examples, self.source.store, self.tokenizer, self.template, options)

    def engine(self) -> Engine:
        """Asks the model, greedily; `Engine.with_model` gives it arrays, those of
        `layout.evaluation_arrays`."""
        evaluation = self.recipe.evaluation
        return Engine(
            self.model.merge(self.model.params, self.model.stats),
            self.tokenizer,
            self.template,
            config=GenerationConfig(max_new=evaluation.max_new),
            fusion=evaluation.fusion,
            devices=self.layout,
        )

    def grouping(self, dataset: Dataset, *, centred: bool = False) -> Grouping:
        """How a split's questions are batched: about each video's test views, or its middle one."""
        evaluation = self.recipe.evaluation
        views = "1x1" if centred else evaluation.test_clips
        return Grouping(
            dataset,
            videos=videos_a_batch(evaluation.batch, views, self.layout.batch_shards),
            together=self.recipe.data.questions,
            centred=centred,
        )
