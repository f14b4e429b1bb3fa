"""Builds the annotations of a dataset for TFDS: python -m rvllm_jax.build NAME --manual_dir=FOLDER

This is `tfds build --imports=rvllm_jax.data.tfds.builder` with all of its options; TFDS's command
does the same, but starts only where TensorFlow is installed. `--allow_partial` stands for
`--config=partial`.
"""

import sys

from absl import app

from rvllm_jax.data.tfds import builder
from rvllm_jax.system.errors import report_errors


@report_errors("error: ")
def main(command) -> None:
    command.execute()


def parse(argv: list[str]):
    """The command that `tfds build` makes of the arguments behind argv[0]."""
    from tensorflow_datasets.scripts.cli import build, cli_utils

    if {"shapes", "--allow_partial"} <= set(argv[1:]):  # TFDS says that it "does not have config"
        sys.exit("error: --allow_partial: shapes is made here, always whole; leave this out")
    given = ["--config=partial" if each == "--allow_partial" else each for each in argv[1:]]
    parser = cli_utils.make_flags_parser(build.Args, description=__doc__)
    return parser([argv[0], *given, f"--imports={builder.__name__}"])


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
