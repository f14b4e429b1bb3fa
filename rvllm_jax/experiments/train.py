"""A whole run: prepare, train, ask, report. The working directory holds it all."""

import functools
from pathlib import Path

from absl import logging

from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches import prompt_view
from rvllm_jax.evaluation import controls
from rvllm_jax.experiments.ask import ask_all, fusion, predict, texts
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.report import run_report
from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.atomic import read_json
from rvllm_jax.training import metrics
from rvllm_jax.training.loop import Result, Trainer
from rvllm_jax.training.resume import differences, fingerprint, open_start
from rvllm_jax.training.validate import boundary_losses


def run(recipe: Recipe, workdir: Path) -> dict:
    """Prepares, trains, asks and reports; every part takes up what exists. Returns the results.

    With several hosts each one returns them, and host 0 reports.
    """
    experiment = Experiment.open(recipe, workdir)
    datasets = experiment.datasets.asked
    asked = {split: fingerprint(dataset) for split, dataset in datasets.items()}
    result = train(experiment)
    if results := _earlier_results(workdir, result.position.done, asked, fusion(recipe)):
        return results
    results, samples = ask_all(experiment, result, datasets)
    if not HERE.is_first:
        return results
    inputs = {stage.name: stage.input for stage in recipe.stages}
    results["boundaries"] = boundary_losses(metrics.read(workdir / "metrics.jsonl"), inputs)
    results["asked"] = asked  # by which the next start sees whether these results are still true
    run_report.write(workdir, results, samples)
    return results


def _earlier_results(workdir: Path, steps: int, asked: dict[str, str], fusion: str) -> dict | None:
    """The results of an earlier start, where they are of this checkpoint and these questions, and
    views were fused in this way; results that do not name theirs are of before there was a choice.
    """
    path = workdir / "report" / "results.json"
    results = read_json(path) if HERE.is_first and path.is_file() else None
    results = HERE.from_first(results, "earlier results")
    if not results:
        return None
    others = differences(results.get("asked", {}), asked)
    others += differences({"fusion": results.get("fusion", fusion)}, {"fusion": fusion})
    if results.get("steps") == steps and not others:
        logging.info("%s is of this checkpoint: nothing left to do", path)
        return results
    logging.info("%s is of another checkpoint or other questions: %s", path, others)
    return None


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

    return Trainer(
        recipe,
        experiment.workdir,
        model,
        datasets.train,
        datasets.validation,
        probe,
        tokenizer=experiment.tokenizer.fingerprint,
        start=functools.partial(open_start, weights, recipe.model.random, model),
    ).run()


def show_prompt(recipe: Recipe, workdir: Path, count: int) -> str:
    """The first `count` training sequences of each kind of stage, as text; trains nothing."""
    experiment = Experiment.open(recipe, workdir)
    parts = []
    for input, dataset in experiment.datasets.train.items():
        shown = prompt_view.show_sequences(dataset, experiment.tokenizer, count)
        parts.append(f"stage.input={input!r}. {shown}")
    return "\n\n".join(parts)
