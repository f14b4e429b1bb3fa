"""What a configuration needs of a machine: python -m rvllm_jax.plan --config=... --topology=v5e:8x8

Nothing is allocated and no accelerator is asked. For TPUs the real step is compiled ahead of time,
where --tpu_python names a Python with libtpu. Ends with 1 where a stage does not fit.
"""

import sys

import jax
from absl import flags
from ml_collections import config_flags

from rvllm_jax.config import cli, migrate
from rvllm_jax.config.check import resolve
from rvllm_jax.costs import chips
from rvllm_jax.planning import rates, text
from rvllm_jax.planning.compile import EFFORTS
from rvllm_jax.planning.plan import make_plans

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe, such as configs/joint.py:paper.", lock_config=True
)
TOPOLOGY = flags.DEFINE_list(
    "topology", None, "Chips, such as v5e:8x8 or h200:1; several, by commas, make a table."
)
STAGES = flags.DEFINE_list("stages", [], "Stages to plan; all of the schedule by default.")
CLIPS = flags.DEFINE_integer(
    "clips_a_device", 0, "Clips a device instead of the stages' batch.", lower_bound=0
)
PAIRS = flags.DEFINE_integer("pairs", 100_000, "Question-answer pairs of an epoch.", lower_bound=1)
EFFICIENCY = cli.number_flag(
    "efficiency",
    rates.EFFICIENCY,
    "Share of the peak FLOP/s that the prediction takes for granted.",
    lowest=0.01,
    highest=1.0,
)
COMPILE = flags.DEFINE_bool("compile", True, "Compile for TPUs; False: by formula only.")
EFFORT = flags.DEFINE_enum(
    "compile_effort",
    "least",
    list(EFFORTS),
    "Of compiling: 'least' takes a minute or two, and training's program should need less; "
    "'full' compiles what training does, and takes five times as long and more (as JAX 0.11 does "
    "in either case).",
)
TPU_PYTHON = cli.path_flag("tpu_python", sys.executable, "A Python with libtpu, to compile with.")


def main() -> int:
    jax.config.update("jax_platforms", "cpu")
    config = migrate.current(CONFIG.value.to_dict())
    plans = make_plans(
        resolve(config),
        config,
        [chips.parse(name) for name in TOPOLOGY.value],
        stages=STAGES.value,
        clips_a_device=CLIPS.value,
        efficiency=EFFICIENCY.value,
        tpu_python=TPU_PYTHON.value if COMPILE.value else "",
        effort=EFFORT.value,
    )
    print(text.show(plans, PAIRS.value))
    return 0 if all(plan.fits for plan in plans) else 1


if __name__ == "__main__":
    cli.run(main, required=["config", "topology"], before="error: ")
