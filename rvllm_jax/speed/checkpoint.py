"""The rate of checkpoints: the arrays of the last stage, parameters and moments, out and back.

"blocked" is what training waits for; the rest of a save goes on beside it. What was just written is
read from the system's memory where it fits there, so that restoring shows the disk's rate only
where it does not.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError
from rvllm_jax.config.schema import Recipe
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.speed import figures
from rvllm_jax.speed.step import add_recipe, describe, measured_recipe
from rvllm_jax.speed.step_parts import place_stage
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.stages import build_layout

DESCRIPTION = "the rate at which checkpoints are saved and restored"


class Rates(NamedTuple):
    """Seconds of one save and one restore."""

    blocked: float  # until the call has returned
    saved: float  # until the checkpoint is complete
    restored: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, rounds=3)
    where = "where to write; none: the system's temporary folder"
    parser.add_argument("--folder", default="", help=where)
    figures.add_json(parser)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The report's lines, as they are known. Raises ConfigError, MeshError, StageError."""
    recipe = measured_recipe(arguments)
    figures.check(arguments.json)
    if arguments.folder and not Path(arguments.folder).is_dir():
        raise ConfigError(f"--folder={arguments.folder}: there is no such folder; make it first")
    build_layout(recipe, model := build_model(recipe))
    yield describe(recipe)
    with tempfile.TemporaryDirectory(dir=arguments.folder or None) as folder:
        size, rounds = measure(recipe, model, Path(folder), arguments.rounds)
    yield f"{'':10}{'seconds':>10}{'MB/s':>10}   of {size / 1e6:.1f} MB"
    for name in Rates._fields:
        best = min(getattr(one, name) for one in rounds)
        yield f"{name:10}{best:10.4f}{size / 1e6 / best:10.1f}"
    seconds = [one._asdict() for one in rounds]
    figures.write(arguments.json, config=recipe.name, bytes=size, rounds=seconds)


def measure(
    recipe: Recipe, model: FunctionalModel, folder: Path, rounds: int
) -> tuple[int, list[Rates]]:
    """Bytes of a checkpoint, and the seconds of each round."""
    number = len(recipe.stages) - 1
    placed = place_stage(recipe, model, number)
    arrays = jax.block_until_ready(placed.placement.collect(placed.arrays, placed.key))
    shapes, measured = placed.placement.shapes(number, placed.setup), []
    checkpoints = Checkpoints(folder, keep=1)
    for step in range(1, rounds + 1):
        times = [time.perf_counter()]
        checkpoints.save(step, arrays, {})
        times.append(time.perf_counter())
        checkpoints.wait()
        times.append(time.perf_counter())
        jax.block_until_ready(checkpoints.restore(step, shapes)[0])
        times.append(time.perf_counter())
        measured.append(Rates(times[1] - times[0], times[2] - times[0], times[3] - times[2]))
    checkpoints.close()
    return sum(x.nbytes for x in jax.tree.leaves(arrays)), measured
