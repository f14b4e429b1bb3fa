"""Trains and evaluates: python -m rvllm_jax.main --config=configs/joint.py"""

import logging as python_logging
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from rvllm_jax.config import refuse_unknown, resolve
from rvllm_jax.experiments import report
from rvllm_jax.experiments.run import run, show_prompt
from rvllm_jax.training.checkpoint import claim
from rvllm_jax.training.interrupt import end_on_sigterm

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe, such as configs/joint.py; keys by --config.KEY=VALUE.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes; runs/NAME by default.")
SHOW_PROMPT = flags.DEFINE_integer(
    "show_prompt",
    0,
    "Prints the first N training rows of each kind of stage as the model sees them, with the "
    "tokens that are not learned marked, and exits.",
    lower_bound=0,
)

# Keys that may change when a working directory is continued: they change nothing that is trained,
# and what other test questions make of it is asked anew.
MAY_CHANGE = (
    *("data.workers", "data.store", "data.test", "mesh", "checkpoint", "log_every"),
    *("max_skipped", "max_unreadable"),
)


def _worth_showing(record: python_logging.LogRecord) -> bool:
    """Orbax tells every step of a save, by absl's own logger: its warnings are enough."""
    return record.levelno >= python_logging.WARNING or "orbax" not in record.pathname


def parse(argv: list[str]) -> list[str]:
    """absl's parser; an override of a key that the recipe lacks is refused by its whole name."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        failed = error  # ml_collections names no more than the last part of the key
    overrides = [given for given in argv if re.match(r"--?(no)?config\.", given)]
    sys.argv = [given for given in argv if given not in overrides]
    flags.FLAGS(sys.argv, known_only=True)
    refuse_unknown(CONFIG.value, [o.partition("config.")[2].partition("=")[0] for o in overrides])
    raise failed


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; overrides are --config.KEY=VALUE")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_worth_showing)
    end_on_sigterm()  # while training, loop.py saves first
    recipe = resolve(CONFIG.value)
    workdir = Path(WORKDIR.value or f"runs/{recipe.name}")
    claim(workdir, CONFIG.value.to_dict(), ignore=MAY_CHANGE)
    if SHOW_PROMPT.value:
        print(show_prompt(recipe, workdir, SHOW_PROMPT.value))
        return
    results = run(recipe, workdir)
    print(report.format_table(results))
    print(f"report: {workdir / 'report'}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
