"""The figures of a benchmark as JSON, next to its table."""

import argparse
from pathlib import Path
from typing import Any

import jax

from rvllm_jax.config.check import ConfigError
from rvllm_jax.system.atomic import write_json


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", default="", help="file for the figures, too")


def check(file: str) -> None:
    """Raises ConfigError where `file` could not be written: before hours of measurement."""
    if file and (not Path(file).absolute().parent.is_dir() or Path(file).is_dir()):
        raise ConfigError(f"--json={file}: name a file in a folder that is there")


def write(file: str, **values: Any) -> None:
    """`values`, and on what it was measured; "" writes nothing."""
    if file:
        facts = {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}
        write_json(file, facts | values)
