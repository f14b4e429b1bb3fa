"""Builds the annotations of a dataset for TFDS: python -m rvllm_jax.build NAME --manual_dir=FOLDER

This is `tfds build --imports=rvllm_jax.data.tfds.builder` with all of its options; TFDS's command
does the same, but starts only where TensorFlow is installed. `--allow_partial` stands for
`--config=partial`.
"""

import sys

from absl import app

from rvllm_jax.data.tfds import builder, datasets
from rvllm_jax.system.errors import report_errors
from rvllm_jax.system.paths import expanded


@report_errors("error: ")
def main(command) -> None:
    command.execute()


@report_errors("error: ")
def parse(argv: list[str]):
    """The command that `tfds build` makes of the arguments behind argv[0]."""
    from tensorflow_datasets.scripts.cli import build, cli_utils

    if {"shapes", "--allow_partial"} <= set(argv[1:]):  # TFDS says that it "does not have config"
        sys.exit("error: --allow_partial: shapes is made here, always whole; leave this out")
    given = ["--config=partial" if each == "--allow_partial" else each for each in argv[1:]]
    given = [
        name + equals + expanded(value, name) if name.endswith(("_dir", "_path")) else each
        for each in given
        for name, equals, value in [each.partition("=")]
    ]
    helps = {"-h", "--help", "--helpfull"} & set(given)
    known = [*(dataset.name for dataset in datasets.DATASETS), "shapes"]
    named = [each.partition("/")[0].partition(":")[0] for each in given if each[:1] != "-"]
    if not helps and not set(named) & set(known):
        sys.exit(
            f"error: {f'{named[0]}: there is no such dataset' if named else 'name a dataset'}; "
            f"there are {', '.join(known)}: python -m rvllm_jax.build {known[0]} "
            "--manual_dir=FOLDER --data_dir=DATA"
        )
    parser = cli_utils.make_flags_parser(build.Args, description=__doc__)
    return parser([argv[0], *given, f"--imports={builder.__name__}"])


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
