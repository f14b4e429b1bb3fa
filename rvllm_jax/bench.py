"""Measures this machine: python -m rvllm_jax.bench input"""

import argparse
import sys

from rvllm_jax.benchmarks import input

COMMANDS = {"input": input}  # each has DESCRIPTION, add_arguments(parser) and run(arguments)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m rvllm_jax.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(
            name,
            help=command.DESCRIPTION,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_arguments(own)
    arguments = parser.parse_args(argv)
    print(COMMANDS[arguments.command].run(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
