"""What the commands share: how flags are parsed, and how errors end a command."""

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from absl import app, flags

from rvllm_jax.system.errors import RvllmError, report_errors
from rvllm_jax.system.malloc import keep_all_freed_memory_on_cpu

# What is called otherwise since somebody last typed it, old -> new, as typed: "config.data.fps",
# "max_new". It is refused by its new name; that its value still means the same nobody knows.
RENAMED: dict[str, str] = {}
# What Ctrl-C prints, below the line or bar that is under way.
INTERRUPTED = "\ninterrupted; start the same command again"
CONTINUES = f"{INTERRUPTED}, it continues"


class FlagError(RvllmError, ValueError):
    """A flag that there is no more; the message says what it is called now."""


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
            refuse_absent_recipe(argv)
        return parse(argv) if positional is not None else flags.FLAGS(argv, known_only=True)

    flags.mark_flags_as_required(required)
    app.run(start, flags_parser=parsed)


def refuse_absent_recipe(argv: Sequence[str]) -> None:
    """Raises FlagError where --config names no file; a part behind ":" is the recipe's."""
    for given, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        if named := re.fullmatch(r"--?config(?:=(.*))?", given):
            path = (following if named[1] is None else named[1]).partition(":")[0]
            if not Path(path).is_file():
                raise FlagError(f"--config={path}: there is no such file; correct the path")


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


def parse(argv: list[str]) -> list[str]:
    """absl's parser; --help of a command with a --config lists the keys of a configuration too.

    An override of a key that the recipe of --config lacks is refused by its whole name, as a
    ConfigError. What checks a configuration takes in JAX, which the other commands do without.
    """
    try:
        return app.parse_flags_with_usage(argv)
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
