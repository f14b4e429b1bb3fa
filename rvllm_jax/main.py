"""Trains and evaluates: python -m rvllm_jax.main --config=configs/joint.py"""

import logging as python_logging
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from rvllm_jax.config import resolve
from rvllm_jax.experiments import report
from rvllm_jax.experiments.run import run
from rvllm_jax.training.checkpoint import claim

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe, such as configs/joint.py; keys by --config.KEY=VALUE.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes; runs/NAME by default.")

# Keys that may change when a working directory is continued: they change no result.
MAY_CHANGE = (
    *("data.workers", "data.store", "mesh", "checkpoint", "log_every", "max_skipped"),
    "max_unreadable",
)


def _worth_showing(record: python_logging.LogRecord) -> bool:
    """Orbax tells every step of a save, by absl's own logger: its warnings are enough."""
    return record.levelno >= python_logging.WARNING or "orbax" not in record.pathname


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; overrides are --config.KEY=VALUE")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_worth_showing)
    recipe = resolve(CONFIG.value)
    workdir = Path(WORKDIR.value or f"runs/{recipe.name}")
    claim(workdir, CONFIG.value.to_dict(), ignore=MAY_CHANGE)
    results = run(recipe, workdir)
    print(report.format_table(results))
    print(f"report: {workdir / 'report'}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
