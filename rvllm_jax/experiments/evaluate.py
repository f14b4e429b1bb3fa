"""A model asked the questions of benchmarks: checked first, all of them, then answered."""

from collections.abc import Callable
from pathlib import Path

from rvllm_jax.data.batches.source import EMBEDDED
from rvllm_jax.evaluation.answers.answered import digest
from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.evaluation.benchmarks import Benchmark, check_names, open_benchmark, open_shapes
from rvllm_jax.experiments.benchmark_run import BenchmarkRun
from rvllm_jax.experiments.evaluate_options import Options
from rvllm_jax.experiments.saved import training_videos
from rvllm_jax.experiments.saved.open import Opened, describe_model, read_arrays
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import checksum


def evaluate(
    names: list[str],
    data: str,
    model: str,
    out: str | Path,
    options: Options,
    *,
    progress: Callable | None = None,
) -> list[str]:
    """Answers what is not answered yet, and returns lines that say what was done.

    data: the folder that holds one prepared folder a benchmark. model: a run or an exported folder.
    progress: as that of `data.batches.source.open_data`, for what `shapes` prepares.

    With several hosts each one calls it; host 0 writes, and returns lines about its benchmarks.

    Raises EvaluationError, HostsError where hosts differ, and what opening the model and the data
    raises, before anything is computed.
    """
    check_names(names)
    options.check()
    mesh = {"data": -1, "fsdp": options.fsdp, "tensor": options.tensor}
    described = describe_model(model, mesh=mesh)
    of = {
        "recipe": digest(repr(described.recipe)),
        "tokenizer": described.tokenizer.fingerprint,
        "template": repr(described.template),
    }
    HERE.same(of, f"--model={model}")
    opened = read_arrays(described)
    training = training_videos.read(opened.path)
    told = [opened.told]
    if training is None:
        told.append(
            f"{opened.path}: holds no {training_videos.FILE}: its training videos are not known, "
            "so that no score can be called zero-shot"
        )
    opened_all = []
    for name in names:
        with HERE.first_then_others(f"opening {name}"):  # host 0 renders `shapes`
            opened_all.append(_open(name, data, opened, options, progress))
    runs = [BenchmarkRun(own, opened, training, Path(out), options) for own in opened_all]
    hash = checksum(opened.params | opened.stats)
    for run in runs:
        told += run.run(hash)
    return told


def _open(name: str, data: str, opened: Opened, options: Options, progress) -> Benchmark:
    own = opened.recipe.data
    if name == EMBEDDED:
        root = data or own.store
        return open_shapes(root, own.store_options, split=options.split, progress=progress)
    if not data:
        raise EvaluationError(f"--benchmarks={name} needs --data, the folder that holds {name}")
    command = f" --stride={own.stride} --short_side={own.short_side} --interval={own.interval}"
    how = dict(split=options.split, allow_partial=options.allow_partial, command=command)
    benchmark = open_benchmark(name, data, **how)
    stored = benchmark.store.options
    if own.interval % stored.stride or stored.short_side != own.short_side:
        raise EvaluationError(
            f"{benchmark.folder}: stores every {stored.stride}th frame with a short side of "
            f"{stored.short_side} pixels, and the model was trained on every {own.interval}th with "
            f"{own.short_side}; prepare it again, into another folder, with{command}"
        )
    return benchmark
