"""What the commands share: how flags are parsed, and how errors end a command."""

import functools
import math
import os
import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from absl import app, flags
from ml_collections import ConfigDict

from rvllm_jax.system.errors import RvllmError, report_errors
from rvllm_jax.system.malloc import keep_all_freed_memory_on_cpu
from rvllm_jax.system.paths import expanded

# What is called otherwise since somebody last typed it, old -> new, as typed: "config.data.fps",
# "max_new". It is refused by its new name; that its value still means the same nobody knows.
RENAMED: dict[str, str] = {}
# What Ctrl-C prints, below the line or bar that is under way.
INTERRUPTED = "\ninterrupted; start the same command again"
REPOSITORY = Path(__file__).parents[2]
CONTINUES = f"{INTERRUPTED}, it continues"


class FlagError(RvllmError, ValueError):
    """A flag that there is no more; the message says what it is called now."""


class _PathParser(flags.ArgumentParser):
    """One path, or several separated by commas, as text."""

    def __init__(self, name: str):
        self._flag = f"--{name}"

    def parse(self, argument: str) -> str:
        return expanded(argument, self._flag)

    def flag_type(self) -> str:
        return "path"


class _PathsParser(_PathParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        parts = argument if isinstance(argument, list) else argument.split(",")
        return [super(_PathsParser, self).parse(part.strip()) for part in parts if part.strip()]


class _NumberParser(flags.FloatParser):
    """A number that is one: absl takes "nan" and "inf", and no bound keeps "nan" out."""

    def convert(self, argument: str | float) -> float:
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError(f"is {value}, expected a finite number")
        return value


def number_flag(
    name: str, default: float, help: str, lowest: float | None = None, highest: float | None = None
) -> flags.FlagHolder[float]:
    """A flag of a finite number, from `lowest` to `highest` where they are given."""
    return flags.DEFINE(_NumberParser(lowest, highest), name, default, help)


def path_flag(name: str, default: str | None, help: str) -> flags.FlagHolder[str]:
    """A flag that names a file or folder: ~ in it is the home folder."""
    return flags.DEFINE(_PathParser(name), name, default, help)


def paths_flag(name: str, default: list[str] | None, help: str) -> flags.FlagHolder[list[str]]:
    """A flag of several, separated by commas."""
    return flags.DEFINE(_PathsParser(name), name, default, help)


def run(
    main: Callable[..., int | None],
    *others: type[Exception],
    required: Sequence[str] = (),
    before: str | None = "refused: ",
    interrupted: str = INTERRUPTED,
    positional: int | None = 0,
    keep_memory: bool = False,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Parses the command line, calls `main` and exits with the code that it returns, or 0.

    main: called with the arguments beside the flags. others: errors that end the command in words
    like RvllmError. required: flags without which it does not start. before, interrupted: of
    `report_errors`. positional: how many arguments beside the flags there may be; None: any, and
    flags that are not known are among them. keep_memory: of a command that computes. renamed: as
    RENAMED, of this command alone.
    """

    @report_errors(before, *others, interrupted=interrupted)
    def start(argv: list[str]) -> None:
        if positional is not None and len(argv) > 1 + positional:
            by_key = "; overrides are --config.KEY=VALUE" if "config" in flags.FLAGS else ""
            raise app.UsageError(f"unknown arguments {argv[1:]}{by_key}")
        if keep_memory:
            keep_all_freed_memory_on_cpu()
        sys.exit(main(*argv[1:]))

    @report_errors(None)
    def parsed(argv: list[str]) -> list[str]:
        refuse_renamed(argv, {**RENAMED, **renamed})
        if "config" in flags.FLAGS:
            from rvllm_jax.config import migrate  # takes in JAX, as those do that have recipes

            keys = {f"config.{old}": f"config.{new}" for old, new in migrate.RENAMED.items()}
            removed = {f"config.{key}": advice for key, advice in migrate.REMOVED.items()}
            refuse_renamed(argv, keys, removed)
            argv = with_recipe(argv)
        arguments = parse(argv, known_only=positional is None)
        for name in required:
            flag = flags.FLAGS[name]
            if flag.value in (None, "", []):
                lacks = "is not given" if flag.value is None else "is empty"
                raise FlagError(f"--{name}: {lacks}; give it a value, --{name}=...: {flag.help}")
        if "config" in flags.FLAGS:
            from rvllm_jax.config import keys, schema

            keys.expand_paths(schema.Recipe, flags.FLAGS["config"].value)
        return arguments

    app.run(start, flags_parser=parsed)


def with_recipe(argv: Sequence[str]) -> list[str]:
    """`argv` with the home folder for ~ in --config. Raises FlagError where that is no recipe."""
    given = list(argv)
    for n, each in enumerate(argv):
        start = re.match(r"--?config=|", each)[0]
        if start or (n and argv[n - 1] in ("--config", "-config")):
            path = expanded(each.removeprefix(start), "--config")
            load_recipe(path)
            given[n] = start + path
    return given


def load_recipe(config: str) -> ConfigDict:
    """What the recipe FILE or FILE:ARGUMENT makes.

    Raises FlagError, before absl or ml_collections would wrap what it raises or keep it for later.
    """
    path, *argument = config.split(":", 1)
    if not os.path.isfile(path):
        advice = "correct the path"
        if not os.path.isabs(path) and (REPOSITORY / path).is_file():
            advice = f"did you mean --config={REPOSITORY / path}?"
        where = "" if os.path.isabs(path) else f" in {Path.cwd()}, where relative paths start"
        raise FlagError(f"--config={path}: there is no such file{where}; {advice}")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise AttributeError("no get_config()")
        made = get_config(*argument)
        if not isinstance(made, ConfigDict):
            raise TypeError(f"get_config() returns a {type(made).__name__}")
    except RvllmError:
        raise
    except (Exception, SystemExit) as error:
        raise FlagError(
            f"--config={config}: {type(error).__name__}: {error}; a recipe is a Python file whose "
            "get_config() makes the configuration, as configs/joint.py: correct it"
        ) from error
    return made


def refuse_renamed(
    argv: Sequence[str],
    renamed: Mapping[str, str],
    removed: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raises FlagError, with the new name, for the first flag that is called otherwise now, and,
    with what to do without it, for one that there is no more.

    A key or section stands for all below it, "*" for the name of any section.
    """
    for given in argv[1:]:
        name = re.match(r"--?(?:no)?([\w.]*)", given)[1] if given.startswith("-") else ""
        for old, advice in (*renamed.items(), *removed.items()):
            pattern = re.escape(old).replace(r"\*", r"(\w+)")
            if not (match := re.match(rf"{pattern}(?=\.|$)", name)):
                continue
            if old in removed:
                raise FlagError(f"--{name}: there is no such key any more; {advice}")
            new = functools.reduce(lambda x, part: x.replace("*", part, 1), match.groups(), advice)
            raise FlagError(f"--{name}: is called --{new}{name[match.end() :]} now")


def parse(argv: list[str], *, known_only: bool = False) -> list[str]:
    """absl's parser; known_only: what it does not know is returned too.

    --help of a command with a --config lists the keys of a configuration too.

    An override of a key that the recipe of --config lacks is refused by its whole name, as a
    ConfigError. What checks a configuration takes in JAX, which the other commands do without.
    """
    try:
        return flags.FLAGS(argv, known_only=known_only)
    except flags.Error as error:
        print(f"FATAL Flags parsing error: {error}", file=sys.stderr)
        sys.exit("Pass --helpshort or --helpfull to see help on flags.")
    except SystemExit:
        helps = any(re.fullmatch(r"--?(help|helpfull|\?)", given) for given in argv)
        if helps and "config" in flags.FLAGS:
            from rvllm_jax.config.keys import help_text
            from rvllm_jax.config.schema import Recipe

            print(f"\nKeys of the recipe that --config names:\n{help_text(Recipe)}")
        raise
    except (AttributeError, KeyError, TypeError) as error:
        failed = error  # ml_collections names no more than the last part of the key
    overrides = [given for given in argv if re.match(r"--?(no)?config\.", given)]
    if overrides:
        from rvllm_jax.config.check import refuse_unknown

        sys.argv = [given for given in argv if given not in overrides]
        flags.FLAGS(sys.argv, known_only=True)
        keys = [given.partition("config.")[2].partition("=")[0] for given in overrides]
        refuse_unknown(flags.FLAGS["config"].value, keys)
    raise failed
