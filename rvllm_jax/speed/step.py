"""The time of a training step and of its parts, on whatever devices there are.

A stage's step is the one that training compiles; the encoder and the decoder alone are forward and
backward. "first" is what passes until the first call has ended: arrays drawn, program compiled.
"""

import argparse
import ast
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.config.check import ConfigError, refuse_unknown, resolve
from rvllm_jax.config.schema import Recipe
from rvllm_jax.costs.chips import Chip, of_device
from rvllm_jax.speed import figures
from rvllm_jax.speed.generation import best_of
from rvllm_jax.speed.step_parts import Part, make_parts
from rvllm_jax.training.step import keep_programs

DESCRIPTION = "each stage's step, encoder and decoder alone, compilation, share of the peak"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_recipe(parser, rounds=5)
    add("--cache", default="", help="folder of compiled programs that stay; none: compile anew")
    figures.add_json(parser)


def add_recipe(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The arguments of what measures a recipe."""
    add = parser.add_argument
    add("--config", default="configs/joint.py:bench", help="a recipe, as training takes it")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="its keys, as data.frames=8")
    add("--rounds", type=int, default=rounds, help="measurements of each")


def measured_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that `add_recipe`'s arguments name. Raises ConfigError, for no rounds too."""
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds={arguments.rounds}: at least one measurement is needed")
    return read_recipe(arguments.config, arguments.set)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The report's lines, as they are known. Raises ConfigError."""
    recipe = measured_recipe(arguments)
    figures.check(arguments.json)
    keep_programs(arguments.cache)
    yield describe(recipe)
    heads = f"{'ms':>9}{'clips/s':>9}{'TFLOP/s':>9}{'MFU':>6}{'MB':>8}"
    yield f"{'':18}{heads}{'compile s':>11}{'first s':>9}"
    parts = []
    for part in parts_of(recipe):
        parts.append(measure(part, arguments.rounds, recipe.model.dtype))
        yield line(parts[-1])
    figures.write(arguments.json, config=recipe.name, parts=parts)


def parts_of(recipe: Recipe) -> list[Part]:
    """`make_parts`, its refusals as those of a configuration."""
    try:
        return make_parts(recipe)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_recipe(config: str, changes: list[str]) -> Recipe:
    """The recipe of FILE:ARGUMENT with KEY=VALUE changed. Raises ConfigError."""
    path, _, argument = config.partition(":")
    if not Path(path).is_file():
        raise ConfigError(
            f"--config={config}: there is no file {path}; start from the repository's root, or "
            "name the recipe by its whole path"
        )
    spec = importlib.util.spec_from_file_location("recipe_of_bench", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        values = module.get_config(*[argument] * bool(argument))
    except ValueError as error:
        raise ConfigError(f"--config={config}: {error}") from error
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
        f"rows of {data.context} tokens, {data.questions} questions; batches of "
        f"{', '.join(str(stage.batch) for stage in recipe.stages)}; {recipe.model.dtype}; "
        f"{jax.device_count()} x {device.device_kind}"
    )


def measure(part: Part, rounds: int, dtype: str) -> dict[str, Any]:
    """Figures of one part by name; the best of `rounds` calls counts. Its arrays are freed."""
    begin = time.perf_counter()
    started = part.start()
    started.call()
    once = time.perf_counter() - begin
    seconds = best_of(rounds, best=started.call)["best"]
    rate, peak = part.flops / seconds, peak_flops(of_device(jax.devices()[0].device_kind), dtype)
    return {
        "name": part.name,
        "seconds": seconds,
        "clips_per_second": part.clips / seconds,
        "flops_per_second": rate,
        "mfu": None if peak is None else rate / (peak * jax.device_count()),
        "memory": started.memory,
        "compile_seconds": started.compiling,
        "first_seconds": once,
    }


def peak_flops(chip: Chip | None, dtype: str) -> float | None:
    """Of one chip, a second; None where it is not known."""
    return None if chip is None else chip.flops_in(dtype)


def line(part: dict[str, Any]) -> str:
    """One row of the table."""
    share = "-" if part["mfu"] is None else f"{part['mfu']:.0%}"
    return (
        f"{part['name']:18}{1e3 * part['seconds']:9.1f}{part['clips_per_second']:9.2f}"
        f"{part['flops_per_second'] / 1e12:9.3f}{share:>6}{part['memory'] / 1e6:8.0f}"
        f"{part['compile_seconds']:11.1f}{part['first_seconds']:9.1f}"
    )
