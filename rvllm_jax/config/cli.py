"""What commands with a --config share: overrides refused by name, foreseen errors told in words."""

import contextlib
import re
import sys
from collections.abc import Iterator

from absl import app, flags

from rvllm_jax.config.check import refuse_unknown


@contextlib.contextmanager
def told_without_traceback() -> Iterator[None]:
    """Ends with code 1 and the message alone, where the error is one that was foreseen."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("rvllm_jax."):
            raise  # where it comes from is worth reading
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def parse(argv: list[str]) -> list[str]:
    """absl's parser; an override of a key that the recipe of --config lacks is refused by its whole
    name, as a ConfigError.
    """
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        failed = error  # ml_collections names no more than the last part of the key
    overrides = [given for given in argv if re.match(r"--?(no)?config\.", given)]
    sys.argv = [given for given in argv if given not in overrides]
    flags.FLAGS(sys.argv, known_only=True)
    keys = [given.partition("config.")[2].partition("=")[0] for given in overrides]
    refuse_unknown(flags.FLAGS["config"].value, keys)
    raise failed
