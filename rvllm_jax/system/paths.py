"""Paths as they are given: ~ is the home folder; buckets, which Python does not open, are none."""

import os
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


def expanded(path: str, flag: str) -> str:
    """`path`, or several separated by commas, with the home folder for a leading ~ of each.

    Raises PathError, which names `flag`, for a home that is not known and for what names no file.
    """
    parts = [os.path.expanduser(part) for part in path.split(",")]
    for part in parts:
        if part.startswith("~"):
            raise PathError(f"{flag}={part}: no such user's home is known; give the whole path")
        if "\0" in part or any(len(os.fsencode(name)) > 255 for name in part.split("/")):
            raise PathError(f"{flag}={part!r:.300}: no path: a name of it is longer than 255 bytes")
    return ",".join(parts)
