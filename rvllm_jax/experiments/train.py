"""A whole run: prepare, train, ask, report. The working directory holds it all."""

from pathlib import Path
from typing import Any

from absl import logging

from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches import prompt_view
from rvllm_jax.evaluation import controls
from rvllm_jax.experiments.ask import ask_all, fusion, predict, texts
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.report import run_report
from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.experiments.saved.open import computed_dtype, how_computed
from rvllm_jax.experiments.saved.open import fingerprint as model_fingerprint
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import checksum
from rvllm_jax.system.fingerprint import differing
from rvllm_jax.training import metrics
from rvllm_jax.training.loop import Result, Trainer
from rvllm_jax.training.resume import differences, fingerprint, open_start
from rvllm_jax.training.state import Position
from rvllm_jax.training.validate import boundary_losses


def run(recipe: Recipe, workdir: Path) -> dict:
    """Prepares, trains, asks and reports; every part takes up what exists. Returns the results.

    With several hosts each one returns them, and host 0 reports.
    """
    experiment = Experiment.open(recipe, workdir)
    datasets = experiment.datasets.asked
    asked = {split: fingerprint(dataset) for split, dataset in datasets.items()}
    result = train(experiment)
    made_with = _made_with(experiment, result)
    if results := _earlier_results(workdir, result.position, asked, made_with):
        return results
    results, samples = ask_all(experiment, result, datasets)
    if not HERE.is_first:
        return results
    inputs = {stage.name: stage.input for stage in recipe.stages}
    results["boundaries"] = boundary_losses(metrics.read(workdir / "metrics.jsonl"), inputs)
    # By these the next start sees whether these results are still true.
    results |= {"asked": asked, "made_with": made_with}
    run_report.write(workdir, results, samples)
    return results


def _made_with(experiment: Experiment, result: Result) -> dict[str, Any]:
    """What the answers depend on beside the questions: the model's fingerprint, which is that of
    `experiments.saved.open`, and how it is asked."""
    recipe, evaluation = experiment.recipe, experiment.recipe.evaluation
    params, stats = experiment.layout.evaluation_arrays(result.params, result.stats)
    dtypes = {path: computed_dtype(path, x, recipe) for path, x in params.items()}
    arrays = checksum(params | stats, dtypes)
    return {
        "model": model_fingerprint(arrays, experiment.tokenizer, experiment.template),
        **how_computed(recipe),
        "fusion": fusion(recipe),
        **{name: getattr(evaluation, name) for name in ("test_clips", "max_new", "controls")},
    }


def _earlier_results(
    workdir: Path, position: Position, asked: dict[str, str], made_with: dict[str, Any]
) -> dict | None:
    """The results of an earlier start, where they are of this model and these questions, asked in
    this way.

    What results of earlier versions do not name is not known. They name the seconds that each
    stage took, which another training does not take.
    """
    path = run_report.results_path(workdir)
    results = run_report.read_results(workdir) if HERE.is_first else None
    if results:
        there = {"fusion": results.get("fusion")} | results.get("made_with", {})
        now, steps = dict(made_with), {"steps": position.done}
        if "model" not in there:
            there["seconds"], now["seconds"] = results.get("seconds"), position.seconds
            if there["seconds"] is None:
                logging.warning("%s: does not record which model its table is of", path)
        others = differences(results.get("asked", {}), asked)
        others += differences({"steps": results.get("steps")}, steps)
        others += filter(None, [differing(there, now)])
        if others:
            logging.info("%s is of another model or other questions: %s", path, others)
            results = None
        else:
            logging.info("%s is of this model: nothing left to do", path)
    return HERE.from_first(results, "earlier results")


def train(experiment: Experiment) -> Result:
    """Trains what is left to train in the working directory."""
    recipe, splits, datasets = experiment.recipe, experiment.source.splits, experiment.datasets
    model, weights = experiment.model, recipe.model.weights
    videos = (example.video for example in splits["train"])
    training_videos.record(experiment.workdir, videos, weights)
    if "validation" not in splits:
        logging.warning("no config.data.validation: its loss is taken on training pairs")
    probes = {i: experiment.grouping(d, centred=True) for i, d in datasets.probed.items()}
    engine = experiment.engine()

    def probe(input, params, stats):
        predictions = predict(engine.with_model(model.merge(params, stats)), probes[input])
        accuracy, _ = controls.score(probes[input].dataset.turns, texts(predictions))
        return {f"accuracy/{kind}": value for kind, value in accuracy.items()}

    def start():
        """What a run begins with: no report of an earlier one stands beside it."""
        entries = open_start(weights, recipe.model.random, model)
        if HERE.is_first:
            run_report.clear(experiment.workdir)
        return entries

    return Trainer(
        recipe,
        experiment.workdir,
        model,
        datasets.train,
        datasets.validation,
        probe,
        tokenizer=experiment.tokenizer.fingerprint,
        start=start,
    ).run()


def show_prompt(recipe: Recipe, workdir: Path, count: int) -> str:
    """The first `count` training sequences of each kind of stage, as text; trains nothing."""
    experiment = Experiment.open(recipe, workdir)
    parts = []
    for input, dataset in experiment.datasets.train.items():
        shown = prompt_view.show_sequences(dataset, experiment.tokenizer, count)
        parts.append(f"stage.input={input!r}. {shown}")
    return "\n\n".join(parts)
