"""Parameters and statistics alone out of a checkpoint: a third of what AdamW's run holds."""

from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rvllm_jax.training.checkpoint_series import CheckpointError


def newest(workdir: str | Path, stage: str = "") -> Path:
    """The folder of the newest checkpoint, or of the best one of `stage`; its name is the step.

    Raises CheckpointError: there is none.
    """
    series = Path(workdir).absolute() / (f"best/{stage}" if stage else "checkpoints")
    steps = sorted(int(p.name) for p in series.glob("*") if p.name.isdigit())
    if not steps:
        raise CheckpointError(f"{series}: no complete checkpoint; train first, or name another run")
    return series / str(steps[-1])


def read_model(
    workdir: str | Path, stage: str = "", places: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict, dict, int]:
    """(params, stats, step) of the newest checkpoint, or of the best one of `stage`, with what no
    stage from then on trained, which stands apart.

    Both map paths to arrays, in the dtypes they were saved in, where `places` (path -> sharding)
    says, by default on the default device. Raises CheckpointError: there is none, or it cannot be
    read.
    """
    checkpoint = newest(workdir, stage)
    arrays = _read(checkpoint, places, without=set())
    for folder in sorted((Path(workdir).absolute() / "frozen").glob("*")):
        if folder.name.isdigit():
            arrays |= _read(folder, places, without=arrays.keys())
    parts: dict[str, dict] = {"params": {}, "stats": {}}
    for name, array in arrays.items():
        part, _, path = name.partition("/")
        parts[part][path] = array
    return parts["params"], parts["stats"], int(checkpoint.name)


def _read(folder: Path, places: Mapping[str, Any], without: Set[str]) -> dict[str, jax.Array]:
    """The parameters and statistics of a checkpoint by name, but for those of `without`."""
    folder = folder / "arrays"
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        with ocp.Checkpointer(handler := ocp.PyTreeCheckpointHandler()) as reader:
            # The reader's own looks for a file that a part of a checkpoint has not, and warns.
            saved = dict(handler.metadata(folder).tree)
            like = {
                name: jax.ShapeDtypeStruct(
                    leaf.shape,
                    np.dtype(leaf.dtype),
                    sharding=places.get(name.partition("/")[2], here),
                )
                for name, leaf in saved.items()
                if name.startswith(("params/", "stats/")) and name not in without
            }
            if not like:
                return {}
            return reader.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=like,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
                    partial_restore=True,
                ),
            )
    except Exception as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error
