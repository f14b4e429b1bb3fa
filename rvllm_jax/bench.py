"""Measures this machine.

python -m rvllm_jax.bench checkpoint|decode|evaluation|generation|input|load|step
"""

import argparse
import sys

from rvllm_jax.speed import (
    checkpoint,
    decoding,
    evaluation,
    generation,
    input,
    loading,
    measure,
    step,
)
from rvllm_jax.system.errors import report_errors
from rvllm_jax.system.malloc import keep_all_freed_memory_on_cpu

# What each of them has is in speed/measure.py.
COMMANDS = {
    "checkpoint": checkpoint,
    "decode": decoding,
    "evaluation": evaluation,
    "generation": generation,
    "input": input,
    "load": loading,
    "step": step,
}
_AS_USED = ("evaluation", "generation", "step")  # by commands that keep their memory, as main does


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m rvllm_jax.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.DESCRIPTION,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_arguments(subparser)
    arguments = parser.parse_args(argv)
    if arguments.command in _AS_USED:
        keep_all_freed_memory_on_cpu()
    with report_errors(""):
        for line in measure.report(COMMANDS[arguments.command].run, arguments):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
