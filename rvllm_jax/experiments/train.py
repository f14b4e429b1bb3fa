"""One experiment from a recipe: prepare, train, ask, report. The working directory holds it all."""

import dataclasses
import functools
import os
from pathlib import Path

from absl import logging

from rvllm_jax.config.build import build_model
from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.annotations.example import Example
from rvllm_jax.data.batches import prompt_view
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.source import TrainingData, open_data
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.data.text.template import Template
from rvllm_jax.evaluation import controls
from rvllm_jax.experiments.report import run_report
from rvllm_jax.experiments.report.samples import answered_samples
from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.experiments.saved.tokenizer import find_tokenizer, open_tokenizer
from rvllm_jax.generation.engine import Engine, Prediction
from rvllm_jax.generation.grouping import Grouping, videos_a_batch
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.system import progress
from rvllm_jax.system.atomic import read_json
from rvllm_jax.training import metrics
from rvllm_jax.training.diagnostics import count_unreadable, warn_of_unreadable
from rvllm_jax.training.loop import Result, Trainer
from rvllm_jax.training.resume import differences, fingerprint, open_start
from rvllm_jax.training.stages import micro_batch_note, open_layout
from rvllm_jax.training.validate import boundary_losses
from rvllm_jax.training.workdir import is_bound, keep_decoder


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
        with HERE.first_then_others("preparing the data"):
            source = open_data(
                data.videos,
                {"train": data.conversations, "validation": data.validation, "test": data.test},
                data.store_options,
                root=data.store,
                max_bad=data.max_bad,
                workers=os.cpu_count() or 1,
                progress=progress.bar if HERE.is_first else None,
            )
            tokenizer = open_tokenizer(recipe, source, workdir)
            keep_decoder(recipe, workdir)
        return cls(recipe, workdir, source, tokenizer, model, layout)

    @functools.cached_property
    def template(self) -> Template:
        return prompt.find_template(self.recipe.data.template, self.tokenizer)

    def dataset(self, examples: list[Example], input: str = "video") -> Dataset:
        options = dataclasses.replace(self.recipe.dataset_options, input=input)
        return Dataset(examples, self.source.store, self.tokenizer, self.template, options)

    def train(self) -> Result:
        """Trains what is left to train in the working directory."""
        splits, model = self.source.splits, self.recipe.model
        training_videos.record(self.workdir, (c.video for c in splits["train"]), model.weights)
        held = splits.get("validation") or splits["train"]
        if "validation" not in splits:
            logging.warning("no config.data.validation: its loss is taken on training pairs")
        held = held[: self.recipe.evaluation.clips]
        inputs = {stage.input for stage in self.recipe.stages}
        probed = {i: self.dataset(held[: self.recipe.evaluation.probe_videos], i) for i in inputs}
        groupings = {i: self.grouping(dataset, centred=True) for i, dataset in probed.items()}
        engine = self.engine()

        def probe(input, params, stats):
            asked = engine.with_model(self.model.merge(params, stats))
            predictions = _predict(asked, groupings[input])
            accuracy, _ = controls.score(probed[input].turns, _texts(predictions))
            return {f"accuracy/{kind}": value for kind, value in accuracy.items()}

        return Trainer(
            self.recipe,
            self.workdir,
            self.model,
            {input: self.dataset(splits["train"], input) for input in inputs},
            {input: self.dataset(held, input) for input in inputs},
            probe,
            tokenizer=self.tokenizer.fingerprint,
            start=functools.partial(open_start, model.weights, model.random, self.model),
        ).run()

    def engine(self) -> Engine:
        """Asks the model, greedily; `Engine.with_model` gives it arrays that lie as `layout.shown`
        says, on every device."""
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


def asked_datasets(experiment: Experiment) -> dict[str, Dataset]:
    """What is asked at the end, by split. Made before training: what does not fit fails then."""
    splits = experiment.source.splits
    chosen = {"train": splits["train"][: experiment.recipe.evaluation.train_videos]}
    chosen.update({split: splits[split] for split in ("test", "heldout") if split in splits})
    return {split: experiment.dataset(examples) for split, examples in chosen.items()}


def evaluate(
    experiment: Experiment, result: Result, datasets: dict[str, Dataset]
) -> tuple[dict, list[run_report.Sample]]:
    """Answers every split and, on unseen clips where there are any, the controls."""
    recipe, shown = (
        experiment.recipe,
        experiment.layout.evaluation_arrays(result.params, result.stats),
    )
    engine = experiment.engine().with_model(experiment.model.merge(*shown))
    results: dict = {"accuracy": {}, "controls": {}, "counts": {}, "unreadable_questions": {}}
    samples, predictions = [], {}
    for split, dataset in datasets.items():
        _warn_of_long(experiment, dataset, split)
        predictions[split] = _predict(engine, experiment.grouping(dataset), f"ask {split}")
        results["accuracy"][split], results["counts"][split] = controls.score(
            dataset.turns, _texts(predictions[split])
        )
        results["unreadable_questions"][split] = _unreadable(
            dataset, predictions[split], split, recipe.max_unreadable
        )
        samples += answered_samples(dataset, predictions[split], split)
    if recipe.evaluation.controls:
        split = "test" if "test" in datasets else "train"
        results["control_split"] = split
        grouping = experiment.grouping(datasets[split])
        results |= _controls(engine, grouping, predictions[split])
    results["test_clips"] = recipe.evaluation.test_clips
    results["fusion"] = "" if results["test_clips"] == "1x1" else recipe.evaluation.fusion
    results["seconds"] = result.position.seconds
    results["steps"] = result.position.done
    results["skipped_updates"] = result.position.skipped_all
    results["unreadable_rows"] = result.position.bad_rows
    results["set_aside"] = experiment.source.set_aside
    results["origins"] = experiment.source.origins
    return results, samples


def _predict(
    engine: Engine,
    grouping: Grouping,
    title: str = "",
    shown: dict[int, int] | None = None,
    **options,
) -> list[Prediction]:
    """Of all questions of a dataset, in its order; with a bar of this title."""
    predictions: list[Prediction] = []
    total = len(grouping.dataset.questions)
    with progress.questions(title, total, shown=bool(title) and HERE.is_first) as bar:
        for batch in engine.predict(grouping, grouping.batches(shown), **options):
            predictions += batch
            bar.update(len(batch))
    return sorted(predictions, key=lambda prediction: prediction.question)


def _texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def _unreadable(dataset: Dataset, predictions: list[Prediction], split: str, most: int) -> int:
    """How many questions of a split were asked about nothing; refused above `most`."""
    bad = [dataset.questions[p.question][0] for p in predictions if p.failed]
    counts: dict[str, int] = {}
    count_unreadable(dataset, bad, counts, most=most, what=f"questions of {split}")
    warn_of_unreadable(counts, f"questions of {split}, counted as wrong")
    return len(bad)


def _warn_of_long(experiment: Experiment, dataset: Dataset, split: str) -> None:
    """Warns where a true answer has more tokens than answers are given."""
    most = experiment.recipe.evaluation.max_new
    lengths = [len(experiment.tokenizer.encode(turn.answer)) for turn in dataset.turns]
    if long := sum(length > most for length in lengths):
        logging.warning(
            "%s: %d of %d true answers have more than config.evaluation.max_new=%d tokens and "
            "cannot be given exactly; raise it to %d",
            split, long, len(lengths), most, max(lengths),
        )  # fmt: skip


def _controls(engine: Engine, grouping: Grouping, plain: list[Prediction]) -> dict:
    """Accuracy under each control; and of the questions that only a look at the video decides."""
    dataset = grouping.dataset
    turns, videos = dataset.turns, dataset.question_videos
    shown = dict.fromkeys((controls.BLIND, controls.SHUFFLED))
    others = controls.partners(turns, videos)
    if others:
        shown[controls.SWAPPED] = {q: videos[other] for q, other in enumerate(others)}
    answers = {
        name: _texts(_predict(engine, grouping, name, about, **controls.options(name, seed=0)))
        for name, about in shown.items()
    }
    return {
        "controls": {name: controls.score(turns, texts)[0] for name, texts in answers.items()},
        "recurring": controls.only_seen(turns, _texts(plain), answers, others),
    }


def show_prompt(recipe: Recipe, workdir: Path, rows: int) -> str:
    """The first `rows` training rows of each kind of stage, as text; trains nothing."""
    experiment = Experiment.open(recipe, workdir)
    parts = []
    for input in dict.fromkeys(stage.input for stage in recipe.stages):
        dataset = experiment.dataset(experiment.source.splits["train"], input)
        shown = prompt_view.show_rows(dataset, experiment.tokenizer, rows)
        parts.append(f"stage.input={input!r}. {shown}")
    return "\n\n".join(parts)


def run(recipe: Recipe, workdir: Path) -> dict:
    """Prepares, trains, evaluates and reports; every part takes up what exists. Returns results.

    With several hosts each one returns them, and host 0 reports.
    """
    experiment = Experiment.open(recipe, workdir)
    datasets = asked_datasets(experiment)
    asked = {split: fingerprint(dataset) for split, dataset in datasets.items()}
    result = experiment.train()
    done = workdir / "report" / "results.json"
    results = read_json(done) if HERE.is_first and done.is_file() else None
    if results := HERE.from_first(results, "earlier results"):
        others = differences(results.get("asked", {}), asked)
        if results.get("steps") == result.position.done and not others:
            logging.info("%s is of this checkpoint: nothing left to do", done)
            return results
        logging.info("%s is of another checkpoint or other questions: %s", done, others)
    results, samples = evaluate(experiment, result, datasets)
    if not HERE.is_first:
        return results
    inputs = {stage.name: stage.input for stage in recipe.stages}
    results["boundaries"] = boundary_losses(metrics.read(workdir / "metrics.jsonl"), inputs)
    results["asked"] = asked  # by which the next start sees whether these results are still true
    run_report.write(workdir, results, samples)
    return results
