"""Trains and evaluates: python -m rvllm_jax.main --config=configs/joint.py

On several hosts the same command is started on each: with --multihost on the workers of a Cloud TPU
slice and in a Slurm job, elsewhere with --coordinator=HOST:PORT --hosts=N --host=I.
"""

import logging as python_logging
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from rvllm_jax.config import cli, migrate
from rvllm_jax.config.check import resolve
from rvllm_jax.experiments.report import run_report
from rvllm_jax.experiments.train import run, show_prompt
from rvllm_jax.hosts import join
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.paths import refuse_urls
from rvllm_jax.training.sigterm import end_on_sigterm
from rvllm_jax.training.step import keep_programs
from rvllm_jax.training.workdir import MAY_CHANGE, claim, flat, with_kept_decoder

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe, such as configs/joint.py; keys by --config.KEY=VALUE.",
    lock_config=True,
)
WORKDIR = cli.path_flag("workdir", None, "Where everything goes; runs/NAME by default.")
CACHE = cli.path_flag(
    "cache",
    "",
    "Folder of compiled programs, where the next start finds them; none: compiled anew.",
)
SHOW_PROMPT = flags.DEFINE_integer(
    "show_prompt",
    0,
    "Prints the first N training sequences of each kind of stage as the model sees them, with the "
    "tokens that are not learned marked, and exits.",
    lower_bound=0,
)
flags.adopt_module_key_flags(join)

# Keys that may differ between the hosts of a run: what each has for itself.
OF_A_HOST = ("data.workers", "data.store")


def _worth_showing(record: python_logging.LogRecord) -> bool:
    """Orbax logs every step of a save by absl's own logger: its warnings are enough."""
    return record.levelno >= python_logging.WARNING or "orbax" not in record.pathname


def main() -> None:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_worth_showing)
    config = flat(CONFIG.value.to_dict())
    folders = {"--workdir": WORKDIR.value, "--cache": CACHE.value}
    refuse_urls(folders | {f"config.{key}": value for key, value in config.items()})
    keep_programs(CACHE.value)
    shared = {f"config.{k}": repr(v) for k, v in config.items() if k not in OF_A_HOST}
    with join.joined(join.cluster(), shared):
        start()


def start() -> None:
    if not HERE.is_first:
        logging.set_verbosity(logging.WARNING)
    end_on_sigterm()  # while training, loop.py saves first
    workdir = Path(WORKDIR.value or f"runs/{CONFIG.value.get('name')}")
    config = migrate.current(CONFIG.value.to_dict())  # a recipe may be of an earlier version too
    recipe = resolve(with_kept_decoder(config, workdir))
    with HERE.locked(workdir, advice="name another --workdir"):
        with HERE.first_then_others("claiming the working directory"):
            claim(workdir, config, ignore=MAY_CHANGE)
        HERE.check_shared(workdir)
        if SHOW_PROMPT.value:
            shown = show_prompt(recipe, workdir, SHOW_PROMPT.value)
        else:
            results = run(recipe, workdir)
            shown = f"{run_report.format_table(results)}\nreport: {workdir / 'report'}"
    if HERE.is_first:
        print(shown)


if __name__ == "__main__":
    cli.run(main, required=["config"], before=None, interrupted=cli.CONTINUES, keep_memory=True)
