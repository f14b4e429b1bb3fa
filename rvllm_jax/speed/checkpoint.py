"""The rate of checkpoints: the arrays of the last stage, parameters and moments, out and back.

"blocked" is what training waits for; the rest of a save goes on beside it. What was just written is
read from the system's memory where it fits there, so that restoring shows the disk's rate only
where it does not.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError
from rvllm_jax.config.schema import Recipe
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.speed import measure
from rvllm_jax.speed.step import add_recipe, describe, read_recipe
from rvllm_jax.speed.step_parts import place_stage
from rvllm_jax.system.atomic import try_file
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.stages import build_layout

DESCRIPTION = "the rate at which checkpoints are saved and restored"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, rounds=3)
    where = "where to write; none: the system's temporary folder"
    parser.add_argument("--folder", default="", type=measure.path, help=where)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report. Raises ConfigError, MeshError, StageError."""
    recipe = read_recipe(arguments.config, arguments.set)
    if arguments.folder and not Path(arguments.folder).is_dir():
        raise ConfigError(f"--folder={arguments.folder}: there is no such folder; make it first")
    if arguments.folder:
        try_file(Path(arguments.folder) / "trial", advice="Name another --folder")
    build_layout(recipe, model := build_model(recipe))
    yield describe(recipe)
    with tempfile.TemporaryDirectory(dir=arguments.folder or None) as folder:
        size, rounds = time_checkpoints(recipe, model, Path(folder), arguments.rounds)
    table = measure.Columns(10, {"seconds": "10.4f", "MB/s": "10.1f"})
    yield f"{table.head}   of {size / 1e6:.1f} MB"
    for name in rounds[0]:
        best = measure.best(rounds, name)
        yield table.line(name, best, size / 1e6 / best)
    return {"config": recipe.name, "bytes": size, "rounds": rounds}


def time_checkpoints(
    recipe: Recipe, model: FunctionalModel, folder: Path, number: int
) -> tuple[int, list[dict[str, float]]]:
    """Bytes of a checkpoint, and of each round the seconds until the call of a save has returned
    ("blocked"), until the checkpoint is complete ("saved"), and of its way back ("restored")."""
    stage = len(recipe.stages) - 1
    placed = place_stage(recipe, model, stage)
    arrays = jax.block_until_ready(placed.placement.collect(placed.arrays, placed.key))
    shapes, rounds = placed.placement.shapes(stage, placed.setup), []
    checkpoints = Checkpoints(folder, keep=1)
    for step in range(1, number + 1):
        start = time.perf_counter()
        checkpoints.save(step, arrays, {})
        returned = time.perf_counter()
        checkpoints.wait()
        complete = time.perf_counter()
        jax.block_until_ready(checkpoints.training.restore(step, shapes)[0])
        restored = time.perf_counter() - complete
        seconds = {"blocked": returned - start, "saved": complete - start, "restored": restored}
        rounds.append(seconds)
    checkpoints.close()
    return sum(x.nbytes for x in jax.tree.leaves(arrays)), rounds
