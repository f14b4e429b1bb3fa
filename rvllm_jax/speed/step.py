"""The time of a training step and of its parts, on whatever devices there are.

A stage's step is the one that training compiles; the encoder and the decoder alone are forward and
backward. "first" is what passes until the first call has ended: arrays drawn, program compiled.
"""

import argparse
import ast
import time
from typing import Any

import jax

from rvllm_jax.config import cli
from rvllm_jax.config.check import ConfigError, refuse_unknown, resolve
from rvllm_jax.config.schema import Recipe
from rvllm_jax.costs.chips import of_device
from rvllm_jax.speed import measure
from rvllm_jax.speed.step_parts import Part, make_parts
from rvllm_jax.training.step import keep_programs

DESCRIPTION = "each stage's step, encoder and decoder alone, compilation, share of the peak"
_FIGURES = {  # column -> its width and form, a part's figure and its unit in the table
    "ms": ("9.1f", "seconds", 1e-3),
    "clips/s": ("9.2f", "clips_per_second", 1),
    "TFLOP/s": ("9.3f", "flops_per_second", 1e12),
    "MFU": ("6.0%", "mfu", 1),
    "MB": ("8.0f", "memory", 1e6),
    "compile s": ("11.1f", "compile_seconds", 1),
    "first s": ("9.1f", "first_seconds", 1),
}
COLUMNS = measure.Columns(18, {head: form for head, (form, *_) in _FIGURES.items()})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, rounds=5)
    add = parser.add_argument
    add(
        "--cache",
        type=measure.path,
        default="",
        help="folder of compiled programs that stay; none: compile anew",
    )


def add_recipe(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The arguments of what measures a recipe."""
    add = parser.add_argument
    add(
        "--config",
        type=measure.path,
        default=f"{cli.REPOSITORY}/configs/joint.py:bench",
        help="a recipe, as training takes it",
    )
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="its keys, as data.frames=8")
    measure.add_arguments(parser, rounds=rounds)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report. Raises ConfigError."""
    recipe = read_recipe(arguments.config, arguments.set)
    keep_programs(arguments.cache)
    yield describe(recipe)
    yield COLUMNS.head
    figures = []
    for part in make_parts(recipe):
        figures.append(time_part(part, arguments.rounds, recipe.model.dtype))
        yield line(figures[-1])
    return {"config": recipe.name, "parts": figures}


def read_recipe(config: str, changes: list[str]) -> Recipe:
    """The recipe of FILE:ARGUMENT with KEY=VALUE changed. Raises ConfigError, FlagError."""
    values = cli.load_recipe(config)
    if wrong := [change for change in changes if "=" not in change]:
        raise ConfigError(f"--set {' '.join(wrong)}: expected KEY=VALUE, as data.frames=8")
    pairs = [change.split("=", 1) for change in changes]
    refuse_unknown(values, [key for key, _ in pairs])
    try:
        values.update_from_flattened_dict({key: _value(text) for key, text in pairs})
    except TypeError as error:
        raise ConfigError(f"--set {' '.join(changes)}: {error}") from error
    return resolve(values)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def describe(recipe: Recipe) -> str:
    device, data = jax.devices()[0], recipe.data
    return (
        f"{recipe.model.encoder}, {data.frames} frames of {data.crop} pixels; decoder "
        f"d={recipe.llama.width}, {recipe.llama.layers} layers, {recipe.llama.vocab_size} words; "
        f"sequences of {data.context} tokens, {data.questions} questions; batches of "
        f"{', '.join(str(stage.batch) for stage in recipe.stages)}; {recipe.model.dtype}; "
        f"{jax.device_count()} x {device.device_kind}"
    )


def time_part(part: Part, rounds: int, dtype: str) -> dict[str, Any]:
    """Figures of one part by name; the best of `rounds` calls counts. Its arrays are freed."""
    begin = time.perf_counter()
    started = part.start()
    started.call()
    first = time.perf_counter() - begin
    calls = list(measure.run_rounds(rounds, {"call": measure.timer(started.call)}))
    seconds = measure.best(calls, "call")
    rate, chip = part.flops / seconds, of_device(jax.devices()[0].device_kind)
    return {
        "name": part.name,
        "seconds": seconds,
        "clips_per_second": part.clips / seconds,
        "flops_per_second": rate,
        "mfu": None if chip is None else rate / (chip.flops_in(dtype) * jax.device_count()),
        "memory": started.memory,
        "compile_seconds": started.compiling,
        "first_seconds": first,
    }


def line(part: dict[str, Any]) -> str:
    """One line of the table."""
    figures = [(part[name], unit) for _, name, unit in _FIGURES.values()]
    return COLUMNS.line(part["name"], *("-" if x is None else x / unit for x, unit in figures))
