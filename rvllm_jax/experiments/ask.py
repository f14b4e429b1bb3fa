"""What a run's model is asked at its end: the questions of every split, also under controls."""

from absl import logging

from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.evaluation import controls
from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.report.samples import Sample, answered_samples
from rvllm_jax.generation.engine import Engine, Prediction
from rvllm_jax.generation.grouping import Grouping
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system import progress
from rvllm_jax.training.diagnostics import count_unreadable, warn_of_unreadable
from rvllm_jax.training.loop import Result


def fusion(recipe: Recipe) -> str:
    """How several views of a video give one answer at the end; "" where there is one view."""
    return "" if recipe.evaluation.test_clips == "1x1" else recipe.evaluation.fusion


def ask_all(
    experiment: Experiment, result: Result, datasets: dict[str, Dataset]
) -> tuple[dict, list[Sample]]:
    """Answers every split and, on unseen clips where there are any, the controls."""
    recipe = experiment.recipe
    arrays = experiment.layout.evaluation_arrays(result.params, result.stats)
    engine = experiment.engine().with_model(experiment.model.merge(*arrays))
    results: dict = {"accuracy": {}, "controls": {}, "counts": {}, "unreadable_questions": {}}
    samples, predictions = [], {}
    for split, dataset in datasets.items():
        _warn_of_long(experiment, dataset, split)
        predictions[split] = predict(engine, experiment.grouping(dataset), f"ask {split}")
        results["accuracy"][split], results["counts"][split] = controls.score(
            dataset.turns, texts(predictions[split])
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
    results["fusion"] = fusion(recipe)
    results["seconds"] = result.position.seconds
    results["steps"] = result.position.done
    results["skipped_updates"] = result.position.skipped_all
    results["unreadable_rows"] = result.position.bad_rows
    results["set_aside"] = experiment.source.set_aside
    results["origins"] = experiment.source.origins
    return results, samples


def predict(
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


def texts(predictions: list[Prediction]) -> list[str]:
    """The answers."""
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
        name: texts(predict(engine, grouping, name, about, **controls.options(name, seed=0)))
        for name, about in shown.items()
    }
    return {
        "controls": {name: controls.score(turns, texts)[0] for name, texts in answers.items()},
        "recurring": controls.only_seen(turns, texts(plain), answers, others),
    }
