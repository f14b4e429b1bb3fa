"""Asks a model the questions of benchmarks; judging its answers is another command.

    python -m rvllm_jax.evaluate --benchmarks=msvd_qa,activitynet_qa --data=FOLDER \\
      --model=RUN|EXPORT --out=OUT

FOLDER/BENCHMARK is what `rvllm_jax.prepare` wrote; "own" is a prepared folder of yours, and
"shapes" the embedded dataset, which needs no --data. OUT/BENCHMARK/answers.jsonl grows as answers
come; stopped at any moment, the same command continues. Then `python -m rvllm_jax.judge
--results=OUT` and `python -m rvllm_jax.report --results=OUT`.

On several hosts the same command is started on each: with --multihost on the workers of a Cloud TPU
slice and in a Slurm job, elsewhere with --coordinator=HOST:PORT --hosts=N --host=I. Host 0 writes.

Exit codes: 0 done; 1 refused.
"""

import dataclasses

from absl import flags, logging

from rvllm_jax.config import cli
from rvllm_jax.data.batches.clips import VIEWS
from rvllm_jax.experiments.benchmark_run import EvaluationOptions
from rvllm_jax.experiments.evaluate import evaluate
from rvllm_jax.generation.clip_fusion import FUSIONS
from rvllm_jax.hosts import join
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.errors import report_errors
from rvllm_jax.system.progress import bar

_OPTIONS = EvaluationOptions()

BENCHMARKS = flags.DEFINE_list("benchmarks", None, "Names, separated by commas.")
DATA = cli.path_flag("data", "", "Folder of the prepared benchmarks.")
MODEL = cli.path_flag("model", None, "A working directory, or what convert made of one.")
OUT = cli.path_flag("out", None, "Where a folder a benchmark is written.")
SPLIT = flags.DEFINE_string("split", "", "Which prepared split, where there are several.")
CLIPS = flags.DEFINE_enum("clips", _OPTIONS.clips, list(VIEWS), "Test clips, starts x crops.")
FUSION = flags.DEFINE_enum("fusion", _OPTIONS.fusion, FUSIONS, "Several clips to one answer.")
MAX_NEW = flags.DEFINE_integer("max_new", 0, "Tokens an answer; 0: as the model's recipe says.")
VIDEOS = flags.DEFINE_integer("videos", 0, "Clips encoded at once; 0: as the recipe says.")
TOGETHER = flags.DEFINE_integer("together", _OPTIONS.together, "Most questions behind a prefix.")
CONTROLS = flags.DEFINE_integer(
    "controls", _OPTIONS.controls,
    "Questions asked blind, with shuffled frames and with another video's; 0: none.", 0, 2**31 - 1,
)  # fmt: skip
SEED = flags.DEFINE_integer("seed", 0, "Draws the questions of the controls.")
ALLOW_PARTIAL = flags.DEFINE_bool("allow_partial", False, "Accept fewer than are published.")
FSDP = flags.DEFINE_integer("fsdp", 1, "Devices that each array is split over; and")
TENSOR = flags.DEFINE_integer("tensor", 1, "by the other dimension, for models too large for one.")
flags.adopt_module_key_flags(join)


def main() -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax reports every step of reading a checkpoint
    options = EvaluationOptions(
        SPLIT.value, CLIPS.value, FUSION.value, MAX_NEW.value, VIDEOS.value, TOGETHER.value,
        CONTROLS.value, SEED.value, ALLOW_PARTIAL.value, FSDP.value, TENSOR.value,
    )  # fmt: skip
    asked = {"benchmarks": ",".join(BENCHMARKS.value)} | dataclasses.asdict(options)
    with join.joined(join.cluster(), {f"--{k}": repr(v) for k, v in asked.items()}):
        answer(options)


@report_errors()  # here too: a host that exits with a text gives it to the others
def answer(options: EvaluationOptions) -> None:
    """On each of the hosts; one that refuses ends all, and the others print why."""
    progress = bar if HERE.is_first else None
    lines = evaluate(
        BENCHMARKS.value, DATA.value, MODEL.value, OUT.value, options, progress=progress
    )
    if HERE.is_first:
        print("\n".join(lines))


if __name__ == "__main__":
    cli.run(
        main,
        required=["benchmarks", "model", "out"],
        interrupted=cli.CONTINUES,
        keep_memory=True,
    )
