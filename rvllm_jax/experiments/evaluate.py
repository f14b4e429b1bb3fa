"""A model asked the questions of benchmarks: checked first, all of them, then answered."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.packing import PackingError
from rvllm_jax.data.shapes.build import EMBEDDED
from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.evaluation.benchmarks import Benchmark, check_names, open_benchmark, open_shapes
from rvllm_jax.experiments.benchmark_run import BenchmarkRun, EvaluationOptions
from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.experiments.saved.open import LoadedModel, describe_model, read_arrays
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.fingerprint import SHORT, digest
from rvllm_jax.types import Turn


def evaluate(
    names: list[str],
    data: str,
    model: str,
    out: str | Path,
    options: EvaluationOptions,
    *,
    progress: Callable | None = None,
) -> list[str]:
    """Answers what is not answered yet, and returns lines that say what was done.

    data: the folder that holds one prepared folder a benchmark. model: a run or an exported folder.
    progress: as that of `data.batches.source.open_data`, for what `shapes` prepares.

    With several hosts each one calls it; host 0 writes, and returns lines about its benchmarks.

    Raises EvaluationError, HostsError where hosts differ, LockError where another process writes
    one of the benchmarks' folders, and what opening the model and the data raises, before anything
    is computed.
    """
    check_names(names)
    options.check()
    out = Path(out)
    devices = jax.device_count()
    if devices % (options.fsdp * options.tensor):
        raise EvaluationError(
            f"--fsdp={options.fsdp} --tensor={options.tensor}: their product, "
            f"{options.fsdp * options.tensor}, does not divide the {devices} devices; give a "
            "divisor, or leave both out"
        )
    with _locked(out, names):  # else it would be known after minutes
        pass
    mesh = {"data": -1, "fsdp": options.fsdp, "tensor": options.tensor}
    description = describe_model(model, mesh=mesh)
    identity = {
        "recipe": digest([repr(description.recipe)], SHORT),
        "tokenizer": description.tokenizer.fingerprint,
        "template": repr(description.template),
    }
    HERE.same(identity, f"--model={model}")
    loaded = read_arrays(description)
    training = training_videos.read(loaded.path)
    lines = [loaded.source]
    if training is None:
        lines.append(
            f"{loaded.path}: holds no {training_videos.FILE}: its training videos are not known, "
            "so that no score can be called zero-shot"
        )
    benchmarks = []
    for name in names:
        with HERE.first_then_others(f"opening {name}"):  # host 0 renders `shapes`
            benchmarks.append(_open(name, data, loaded, options, progress))
    runs = [
        BenchmarkRun(each, _dataset(each, loaded, options), loaded, training, out, options)
        for each in benchmarks
    ]
    with _locked(out, names):  # until here each host may refuse: nothing is left then
        for run in runs:
            lines += run.run()
    return lines


@contextlib.contextmanager
def _locked(out: Path, names: list[str]) -> Iterator[None]:
    with contextlib.ExitStack() as ends:
        for name in names:
            ends.enter_context(HERE.locked(out / name, advice="name another --out"))
        yield


def _open(
    name: str, data: str, loaded: LoadedModel, options: EvaluationOptions, progress
) -> Benchmark:
    recipe = loaded.recipe.data
    if name == EMBEDDED:
        root = data or recipe.store
        return open_shapes(root, recipe.store_options, split=options.split, progress=progress)
    if not data:
        raise EvaluationError(f"--benchmarks={name} needs --data, the folder that holds {name}")
    side = recipe.short_side
    command = f" --stride={recipe.stride} --short_side={side} --interval={recipe.interval}"
    how = dict(split=options.split, allow_partial=options.allow_partial, command=command)
    benchmark = open_benchmark(name, data, **how)
    stored = benchmark.store.options
    if recipe.interval % stored.stride or stored.short_side != side:
        raise EvaluationError(
            f"{benchmark.folder}: stores every {stored.stride}th frame with a short side of "
            f"{stored.short_side} pixels, and the model was trained on every {recipe.interval}th "
            f"with {side}; prepare it again, into another folder, with{command}"
        )
    return benchmark


def _dataset(benchmark: Benchmark, loaded: LoadedModel, options: EvaluationOptions) -> Dataset:
    data, context = loaded.recipe.data, loaded.recipe.llama.context
    step = data.interval // benchmark.store.options.stride
    how = dataclasses.replace(
        loaded.recipe.dataset_options,
        sampling=dataclasses.replace(data.sampling, step=step),
        context=context,
        max_segments=1,
        independent_turns=True,
        views=options.clips,
    )
    # An answer is not shown to the model: a long one must not refuse its question.
    silent = [
        dataclasses.replace(c, turns=tuple(Turn(t.question, "-", t.kind) for t in c.turns))
        for c in benchmark.examples
    ]
    try:
        dataset = Dataset(silent, benchmark.store, loaded.tokenizer, loaded.template, how)
    except PackingError as error:
        raise EvaluationError(
            f"{benchmark.name}: a prompt is longer than the model's context of {context} tokens: "
            f"{error}"
        ) from error
    length, max_new = dataset.prefix_length + dataset.question_length, options.tokens(loaded.recipe)
    if length + max_new > context:
        raise EvaluationError(
            f"the longest prompt has {length} tokens and --max_new={max_new} asks for as many "
            f"more, but the model's context is {context}: lower --max_new to "
            f"{max(context - length, 0)} or less"
        )
    return dataset
