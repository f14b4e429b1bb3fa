"""The checkpoints of a working directory: saved and restored in training, and read in part to use.

Each checkpoint is numbered by global step and written in the background; it is complete or not
there at all (checkpoint_folder.py).
"""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from rvllm_jax.hosts.sync import HERE
from rvllm_jax.system.atomic import read_json
from rvllm_jax.training.checkpoint_folder import CheckpointError, CheckpointFolder, aside

_ATTEMPTS = 10  # of reading a checkpoint that training removes meanwhile
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of a working directory, a folder of them each: `training` in
    `checkpoints/STEP`, and `best` by stage, after its first validation, in `best/STAGE/STEP`.

    Parameters that no stage from number N on trains need not be in each of them: they stand once in
    `frozen/N`, which is complete before a checkpoint that relies on it is begun.

    Opening them clears away what a killed process left half-written. With several processes every
    one of them makes the same calls, since saving and restoring are collective.

    Args:
      workdir: the working directory; made when it is not there.
      keep: how many checkpoints of training stay; older ones go once a newer one is complete.
      asynchronous: write in the background, after copying the arrays, so that training goes on.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, asynchronous: bool = True):
        workdir = Path(workdir).absolute()
        self._asynchronous = asynchronous
        self.training = CheckpointFolder(workdir / "checkpoints", keep, asynchronous)
        self.frozen = CheckpointFolder(workdir / "frozen", None, asynchronous)
        self._best_folder = workdir / "best"
        self.best: dict[str, CheckpointFolder] = {}
        if self._best_folder.exists():
            for folder in sorted(self._best_folder.iterdir()):
                if folder.is_dir() and not folder.name.startswith("."):
                    self._stage(folder.name)

    def save(self, step: int, arrays: Any, meta: dict) -> None:
        """Saves `arrays` (a pytree of arrays) and `meta` (JSON) as the newest checkpoint.

        Checkpoints of this step or of later ones, if there are any, give way to it once it is
        complete. The call returns when the arrays are copied: they may be donated afterwards.
        Errors of the previous save in the background are raised here.

        Raises:
          CheckpointError: no space left, or the checkpoint could not be written.
          ValueError: a leaf that Orbax cannot hold, or two leaves of one name.
        """
        self.frozen.wait()
        self.training.save(step, arrays, meta)

    def save_frozen(self, stage: int, params: Any) -> None:
        """Saves `params` for all checkpoints from the stage of this number on."""
        self.frozen.save(stage, {"params": params}, {})

    def restore_frozen(self, stage: int, like: Any) -> Any:
        """What `save_frozen` saved, as `CheckpointFolder.restore`."""
        return self.frozen.restore(stage, {"params": like})[0]["params"]

    def save_best(self, stage: str, step: int, arrays: Any, meta: dict) -> None:
        """Saves the best of `stage`; the one before is removed once this one is complete."""
        self.frozen.wait()
        self._stage(stage).save(step, arrays, meta)

    def wait(self) -> None:
        """Waits for the saves under way; raises CheckpointError when one of them failed."""
        for folder in self._all():
            folder.wait()

    def close(self) -> None:
        """Waits, then lets go of Orbax's threads; raises CheckpointError as `wait` does."""
        try:
            self.wait()
        finally:
            for folder in self._all():
                folder.close()

    def _all(self) -> tuple[CheckpointFolder, ...]:
        return (self.frozen, self.training, *self.best.values())

    def _stage(self, stage: str) -> CheckpointFolder:
        if not stage or stage.startswith(".") or Path(stage).name != stage:
            raise ValueError(f"stage {stage!r}: expected a plain name, it becomes a folder")
        if stage not in self.best:
            self.best[stage] = CheckpointFolder(self._best_folder / stage, 1, self._asynchronous)
        return self.best[stage]


def newest(workdir: str | Path, stage: str = "") -> Path:
    """The folder of the newest checkpoint, or of the best one of `stage`; its name is the step.

    Where training is about to replace all that it had, those are it still. Raises CheckpointError:
    there is none.
    """
    folder = Path(workdir).absolute() / (f"best/{stage}" if stage else "checkpoints")
    for places in (folder.glob("*"), aside(folder).glob("*/*")):
        steps = {int(path.name): path for path in places if path.name.isdigit()}
        if steps:
            return steps[max(steps)]
    raise CheckpointError(f"{folder}: no complete checkpoint; train first, or name another run")


def read_newest(workdir: str | Path, stage: str, read: Callable[[Path], T]) -> T:
    """What `read` makes of the folder of the newest checkpoint, or of the best one of `stage`.

    Training goes on meanwhile, and removes that checkpoint for a newer one: then `read` is called
    with that, as often as `_ATTEMPTS`. With several hosts each one calls it, and reads the same.
    Raises CheckpointError: there is none, or it cannot be read.
    """
    for _ in range(_ATTEMPTS):
        folder = Path(HERE.from_first(str(newest(workdir, stage)), "newest checkpoint"))
        before, failed = _files(folder), None
        try:
            value = read(folder)
        except CheckpointError as error:
            failed = error
        # What is read amid its removal may look whole: chunks that are not there count as zeros.
        if HERE.any(not before or _files(folder) != before, "checkpoint removed"):
            continue
        if failed is not None:
            raise failed
        return value
    raise CheckpointError(
        f"{folder.parent}: {_ATTEMPTS} checkpoints in a row were removed while they were read, as "
        "the training there saves newer ones faster. Try again at the end of the training, or copy "
        "the folder and name the copy"
    )


def _files(folder: Path) -> dict[str, int]:
    """The files of a checkpoint, with their sizes; {} where it is gone."""
    try:
        return {str(path): path.stat().st_size for path in sorted(folder.rglob("*"))}
    except OSError:  # just now
        return {}


def read_meta(workdir: str | Path, stage: str = "") -> tuple[int, dict]:
    """(step, what was saved beside the arrays) of the newest checkpoint, or of the best of `stage`.

    Raises CheckpointError.
    """

    def read(folder: Path) -> tuple[int, dict]:
        return int(folder.name), read_json(folder / "meta" / "metadata", error=CheckpointError)

    return read_newest(workdir, stage, read)


def read_model(
    workdir: str | Path, stage: str = "", shardings: Mapping[str, Any] = MappingProxyType({})
) -> tuple[dict, dict, int]:
    """(params, stats, step) of the newest checkpoint, or of the best one of `stage`, with what no
    stage from then on trained, which stands apart.

    Both map paths to arrays, in the dtypes they were saved in, as `shardings` (by path) says,
    by default on the default device. Raises CheckpointError: there is none, or it cannot be
    read.
    """

    def read(checkpoint: Path) -> tuple[int, dict[str, jax.Array]]:
        return int(checkpoint.name), _read(checkpoint, shardings, without=set())

    step, arrays = read_newest(workdir, stage, read)
    for folder in sorted((Path(workdir).absolute() / "frozen").glob("*")):
        if folder.name.isdigit():
            arrays |= _read(folder, shardings, without=arrays.keys())
    parts: dict[str, dict] = {"params": {}, "stats": {}}
    for name, array in arrays.items():
        part, _, path = name.partition("/")
        parts[part][path] = array
    return parts["params"], parts["stats"], step


def _read(folder: Path, shardings: Mapping[str, Any], without: Set[str]) -> dict[str, jax.Array]:
    """The parameters and statistics of a checkpoint by name, but for those of `without`."""
    folder = folder / "arrays"
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        with ocp.Checkpointer(handler := ocp.PyTreeCheckpointHandler()) as reader:
            # The reader's own looks for a file that a part of a checkpoint has not, and warns.
            saved = dict(handler.metadata(folder).tree)
            like = {
                name: jax.ShapeDtypeStruct(
                    leaf.shape,
                    np.dtype(leaf.dtype),
                    sharding=shardings.get(name.partition("/")[2], default),
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
