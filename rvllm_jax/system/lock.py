"""One process at a time: in a folder, at a file."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rvllm_jax.system.atomic import make_folder, naming

LOCK = "lock"  # the file that is held


def try_lock(file: int | IO) -> bool:
    """Whether this process has an open file for itself now, until it closes it.

    Also where the file system has no locks: nothing is known of other processes there.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds `folder`, made if absent; a second process waits until this one ends at the latest.

    waiting: called before a wait. Raises WriteError where the folder takes no file.
    """
    with naming(folder / LOCK, advice="Name another folder"):
        lock = open(make_folder(folder) / LOCK, "w")
    with lock:
        if not try_lock(lock):
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
