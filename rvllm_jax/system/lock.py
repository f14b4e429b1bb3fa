"""One process at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from rvllm_jax.system.atomic import WriteError

LOCK = "lock"  # the file that is held


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds `folder`, made if absent; a second process waits until this one ends at the latest.

    waiting: called before a wait. Raises WriteError where the folder takes no file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error}); choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
