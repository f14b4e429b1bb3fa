"""Paths that are none: buckets, which Python's files and the readers of frames do not open."""

import re
from collections.abc import Mapping
from typing import Any

from rvllm_jax.system.errors import RvllmError


class PathError(RvllmError, ValueError):
    """A path to where nothing can be read or written; the message says what to name instead."""


def refuse_urls(named: Mapping[str, Any]) -> None:
    """Raises PathError where a value is, or lists, a URL such as "gs://bucket/run"."""
    urls = [
        f"{name}={part.strip()}"
        for name, value in named.items()
        if isinstance(value, str)
        for part in value.split(",")
        if re.match(r"[a-z][a-z0-9+.-]*://", part.strip())
    ]
    if urls:
        raise PathError(
            f"{', '.join(urls)}: a URL, expected a path: frames are read and checkpoints renamed "
            "as files. Mount the bucket as a folder and name that: launch/tpu_vm.sh --bucket=NAME "
            "does so on every worker of a TPU slice, elsewhere `gcsfuse --implicit-dirs "
            "--rename-dir-limit=200000 BUCKET FOLDER`. Give the bucket a hierarchical namespace, "
            "in which renaming a checkpoint is one step"
        )
