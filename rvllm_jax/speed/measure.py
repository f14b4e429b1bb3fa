"""How everything here is measured, printed and kept.

Rounds go through all ways in turns, so that what else runs on the machine falls on each alike. Of a
way the best round counts; of a share, the median of the rounds' ratios.

A measurement is a module with DESCRIPTION, add_arguments(parser) and run(arguments), a generator:
it yields the lines of its report, each as soon as it is known, and returns its figures.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.config.check import ConfigError
from rvllm_jax.system.atomic import try_file, write_json
from rvllm_jax.system.paths import PathError, expanded

Report = Generator[str, None, dict[str, Any]]  # lines, and in the end the figures by name
Timer = Callable[[], float]  # does something once, and returns its seconds
Rounds = Sequence[Mapping[str, float]]  # of each round: seconds by way


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The arguments of every measurement."""
    parser.add_argument("--rounds", type=int, default=rounds, help="measurements of each")
    parser.add_argument("--json", default="", type=path, help="file for the figures, too")


def path(given: str) -> str:
    """The type of an argument that names a file or folder."""
    try:
        return expanded(given, "path")
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def report(run: Callable[[argparse.Namespace], Report], arguments: argparse.Namespace) -> Report:
    """The lines of `run`; then its figures are written to --json, with what they were measured on.

    Raises ConfigError for --rounds and --json before anything is measured, and what `run` raises.
    """
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds={arguments.rounds}: at least one measurement is needed")
    file = arguments.json
    if file and (not Path(file).absolute().parent.is_dir() or Path(file).is_dir()):
        raise ConfigError(f"--json={file}: name a file in a folder that is there")
    if file:
        try_file(file, advice="Give --json another path, or leave it out")
    figures = yield from run(arguments)
    if file:
        device = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
        write_json(file, device | figures)
    return figures


def timer(way: Callable[[], Any], *, processor: bool = False) -> Timer:
    """Times one call of `way`. processor: by the process's seconds on processors, not the clock."""
    clock = time.process_time if processor else time.perf_counter

    def seconds() -> float:
        start = clock()
        way()
        return clock() - start

    return seconds


def run_rounds(number: int, timers: Mapping[str, Timer]) -> Iterator[dict[str, float]]:
    """Seconds by way, round by round."""
    for _ in range(number):
        yield {name: seconds() for name, seconds in timers.items()}


def time_calls(number: int, **ways: Callable[[], Any]) -> list[dict[str, float]]:
    """Seconds of a call of each function by round, after a call of each, which compiles."""
    rounds = run_rounds(number + 1, {name: timer(way) for name, way in ways.items()})
    return list(rounds)[1:]


def best(rounds: Rounds, name: str) -> float:
    """Seconds of a way in its best round."""
    return min(seconds[name] for seconds in rounds)


def ratio(rounds: Rounds, name: str, baseline: str) -> float:
    """Time of a way over that of another, the median over the rounds."""
    return statistics.median(seconds[name] / seconds[baseline] for seconds in rounds)


class Columns:
    """A table: lines of a name, `width` characters wide, and values below their columns' heads.

    columns: {head: the width and form of its values, as in "9.1f"}.
    """

    def __init__(self, width: int, columns: Mapping[str, str]):
        self._width, self._forms, self.heads = width, list(columns.values()), list(columns)
        self.head = self.line("", *columns)

    def line(self, name: str, *values: float | str) -> str:
        """One line; texts stand to the right of their columns as they are."""
        cells = [
            value.rjust(int(form.partition(".")[0]))
            if isinstance(value, str)
            else f"{value:{form}}"
            for value, form in zip(values, self._forms, strict=True)
        ]
        return "".join([f"{name:{self._width}}", *cells])
