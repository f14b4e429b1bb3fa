"""One folder of checkpoints, each save making its step the newest, over Orbax.

Orbax writes a checkpoint under a temporary name and renames it when it is complete, so a process
killed at any moment leaves the previous one restorable. What Orbax leaves to its caller is here:
disk space, saving a step twice, strict comparison on restore, and errors that say what to do.
"""

import collections
import json
import math
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rvllm_jax.config import migrate
from rvllm_jax.system.atomic import make_folder
from rvllm_jax.system.errors import RvllmError

_REMOVED = ".removed"  # where older checkpoints are moved, whole, before they are deleted
_OVERHEAD = 256 * 1024  # bytes of metadata files beside the arrays
_TO_FREE_SPACE = (
    "Free space there, or move the working directory to a larger disk and continue with "
    "--workdir naming its new place."
)


class CheckpointError(RvllmError, RuntimeError):
    """A checkpoint cannot be written, found or restored; the message says where and what to do."""


class CheckpointFolder:
    """Checkpoints in one folder, each save making its step the newest.

    Orbax refuses a step that is already there (and one before the newest, silently). Both happen
    when a run is continued from an earlier point: then the old ones are set aside beside the
    folder, and removed only when the new one is complete. A process killed in between finds them
    at the next start and puts them back.
    """

    def __init__(self, folder: Path, keep: int | None, asynchronous: bool):
        self._folder = folder
        self._aside = aside(folder)
        self._keep, self._asynchronous = keep, asynchronous
        self._pending: int | None = None  # the step whose save may still fail
        self._open(clear=True)

    def save(self, step: int, arrays: Any, meta: dict) -> None:
        leaves = _named(arrays)
        _check_leaves(leaves)
        meta = json.loads(json.dumps(meta))  # a copy, and proof that it is JSON
        self.wait()
        self._check_space(step, leaves)
        self._set_aside(step)
        self._pending = step
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta)
        )
        try:
            saved = self._manager.save(step, args=args)
        except Exception as error:
            raise self._failed(error) from error
        if not saved:
            raise self._failed(RuntimeError("Orbax declined to save this step"))

    def wait(self) -> None:
        if self._pending is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        self._pending = None
        if _is_primary():
            self._sweep()

    def clear(self) -> None:
        """Removes all checkpoints of the folder."""
        self.wait()
        for step in self._manager.all_steps():
            self._manager.delete(step)
        if _is_primary():
            self._sweep()

    def close(self) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint; waits for the save that is under way."""
        self.wait()
        return self._manager.latest_step()

    def read_meta(self, step: int) -> dict:
        """The `meta` saved with `step`, without reading arrays."""
        self._check_exists(step)
        try:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return dict(self._manager.restore(step, args=args)["meta"])
        except Exception as error:
            raise self._unreadable(step, error) from error

    def names(self, step: int) -> Set[str]:
        """What `step` holds: the names of its arrays, such as "params/encoder/stem/kernel"."""
        self._check_exists(step)
        return self._saved(step).keys()

    def _saved(self, step: int) -> dict[str, Any]:
        """The shapes and dtypes of the arrays of a checkpoint that is there, by name."""
        try:
            return dict(self._manager.item_metadata(step)["arrays"].tree)
        except Exception as error:
            raise self._unreadable(step, error) from error

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """Returns (arrays, meta) of `step`, with the structure and shardings of `like`.

        like: a pytree of `jax.ShapeDtypeStruct`, with shardings (default device otherwise). Raises
        CheckpointError: not there, unreadable, or its arrays are not exactly those of `like`;
        missing, surplus and misshapen ones are listed by name.
        """
        meta = self.read_meta(step)
        wanted = {name: _placed(leaf) for name, leaf in _named(like).items()}
        _compare(wanted, self._saved(step), self._folder / str(step))
        try:
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
            arrays = self._manager.restore(step, args=args)["arrays"]
        except Exception as error:
            raise self._unreadable(step, error) from error
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[n] for n in wanted]), meta

    def _open(self, *, clear: bool) -> None:
        """Takes up what is there; `clear`: removes what an earlier process left half-written."""
        if _is_primary():
            make_folder(self._folder)
            self._put_back()
        ocp.multihost.sync_global_processes("rvllm_jax:checkpoints_opened")
        # Handlers by name, so that a manager that has not saved yet can read metadata.
        handlers = {"arrays": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            todelete_subdir=_REMOVED,  # a kill in the midst leaves no half one in its place
            cleanup_tmp_directories=clear,
            enable_async_checkpointing=self._asynchronous,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def _set_aside(self, step: int) -> None:
        superseded = sorted(s for s in self._manager.all_steps() if s >= step)
        if not superseded:
            return
        if _is_primary():
            (self._aside / str(step)).mkdir(parents=True)
            for old in superseded:  # `step` itself first: `_put_back` goes by its absence
                (self._folder / str(old)).rename(self._aside / str(step) / str(old))
        ocp.multihost.sync_global_processes("rvllm_jax:checkpoints_set_aside")
        self._manager.reload()

    def _put_back(self) -> None:
        # `aside/NEW/OLD`: OLD gave way to NEW. If NEW is complete OLD may go, otherwise it returns.
        for aside in self._aside.iterdir() if self._aside.exists() else ():
            if not (self._folder / aside.name).exists():
                for old in sorted(aside.iterdir(), key=lambda old: -int(old.name)):
                    old.rename(self._folder / old.name)
        self._sweep()

    def _sweep(self) -> None:
        for folder in (self._aside, self._folder / _REMOVED):
            shutil.rmtree(folder, ignore_errors=True)

    def _check_space(self, step: int, leaves: Mapping[str, Any]) -> None:
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values()) + _OVERHEAD
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise CheckpointError(
                f"{self._folder}: no space for the checkpoint of step {step}: it needs {needed:,} "
                f"bytes, {free:,} are free. {_TO_FREE_SPACE}"
            )

    def _check_exists(self, step: int) -> None:
        self.wait()
        if step not in (there := list(self._manager.all_steps())):
            raise CheckpointError(
                f"{self._folder}: no checkpoint of step {step}; there are {there or 'none'}. "
                "Name one of these, or another --workdir."
            )

    def _failed(self, error: Exception) -> CheckpointError:
        """Ends a save that failed: restores what was set aside; complete checkpoints are intact.

        Its half-written rest stays until the folder is opened again: Orbax's threads may still be
        writing into it, and would make again what is removed under them.
        """
        step, self._pending = self._pending, None
        free = shutil.disk_usage(self._folder).free
        try:
            self._manager.close()
        except Exception:  # the same error once more
            pass
        if jax.process_count() == 1:  # others, whose save may not have failed, would not come
            self._open(clear=False)
        if any(sign in str(error).lower() for sign in ("no space left", "quota exceeded")):
            what = f"no space left for the checkpoint of step {step} ({free:,} bytes are free now)"
            todo = _TO_FREE_SPACE
        else:
            what, todo = f"the checkpoint of step {step} could not be written", "Mend the cause."
        return CheckpointError(
            f"{self._folder}: {what}: {error}. The checkpoints before it are complete. {todo}"
        )

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._folder / str(step)}: cannot be read: {error}. Delete this folder to continue "
            f"from another checkpoint (there are {list(self._manager.all_steps())})."
        )


def aside(folder: Path) -> Path:
    """Where NEW/OLD is the checkpoint OLD of `folder` until NEW, which replaces it, is complete."""
    return folder.parent / f".aside_{folder.name}"


def _is_primary() -> bool:
    return jax.process_index() == 0


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by their path, `{"params/encoder/stem/kernel": leaf}`, in its order."""
    paths = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    twice = [name for name, n in collections.Counter(name for name, _ in paths).items() if n > 1]
    if twice:
        raise ValueError(f"several arrays are named {twice}: rename one of each")
    return dict(paths)


def _check_leaves(leaves: Mapping[str, Any]) -> None:
    if not leaves:
        raise ValueError("a checkpoint needs at least one array")
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ValueError(f"{name}: expected an array, got {type(leaf).__name__}")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name}: a typed PRNG key; save jax.random.key_data of it")
        if math.prod(leaf.shape) == 0:
            raise ValueError(f"{name}: an array without elements {leaf.shape}; leave it out")


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _compare(wanted: Mapping[str, Any], saved: Mapping[str, Any], folder: Path) -> None:
    missing = [name for name in wanted if name not in saved]
    faults = [f"missing: {name} {_spec(wanted[name])}" for name in missing]
    faults += [f"surplus: {name} {_spec(saved[name])}" for name in saved if name not in wanted]
    faults += [
        f"different: {name} is {_spec(saved[name])}, expected {_spec(wanted[name])}"
        for name in wanted
        if name in saved and _spec(saved[name]) != _spec(wanted[name])
    ]
    if faults:
        raise CheckpointError(
            f"{folder}: its arrays are not those of this configuration. Use the configuration that "
            f"wrote it, or another --workdir.{migrate.missing_parameters(missing)}\n  "
            + "\n  ".join(faults)
        )


def _spec(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
