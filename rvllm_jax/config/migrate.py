"""Configurations that earlier versions stored, as if this one had written them.

A key that came later has in the schema the default by which it changes nothing of what was trained.
"""

from collections.abc import Mapping
from typing import Any

from rvllm_jax.config.keys import complete
from rvllm_jax.config.schema import Recipe


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config`, nested and plain, with the keys that its version did not have.

    What is no configuration is left as it is, for the check to refuse.
    """
    return complete(Recipe, config)
