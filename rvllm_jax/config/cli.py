"""What commands with a --config share: --help lists its keys, overrides are refused by name."""

import re
import sys

from absl import app, flags

from rvllm_jax.config.check import refuse_unknown
from rvllm_jax.config.keys import help_text
from rvllm_jax.config.schema import Recipe


def parse(argv: list[str]) -> list[str]:
    """absl's parser; --help lists the keys of a configuration too.

    An override of a key that the recipe of --config lacks is refused by its whole name, as a
    ConfigError.
    """
    try:
        return app.parse_flags_with_usage(argv)
    except SystemExit:
        if any(re.fullmatch(r"--?(help|helpfull|\?)", given) for given in argv):
            print(f"\nKeys of the recipe that --config names:\n{help_text(Recipe)}")
        raise
    except (AttributeError, KeyError, TypeError) as error:
        failed = error  # ml_collections names no more than the last part of the key
    overrides = [given for given in argv if re.match(r"--?(no)?config\.", given)]
    sys.argv = [given for given in argv if given not in overrides]
    flags.FLAGS(sys.argv, known_only=True)
    keys = [given.partition("config.")[2].partition("=")[0] for given in overrides]
    refuse_unknown(flags.FLAGS["config"].value, keys)
    raise failed
