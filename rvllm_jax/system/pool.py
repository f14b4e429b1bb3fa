"""What a process that reads data asks of the system."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Has processes that are started meanwhile ignore Ctrl-C, from their first moment on.

    A terminal sends it to them too; it is their parent's to answer, by ending them.
    """
    resource_tracker.ensure_running()  # once: it would unblock the signal as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # they inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """Ends this worker when its parent was killed: nobody is left to tell it that its work is over.

    By the parent's pipe, not by Linux's signal at a parent's death: that one comes at the end of
    the thread that started the process, which for Grain's workers ends at once.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def killed_with_parent() -> None:
    """Has Linux end this worker with its parent, at once, also where it holds Python's lock.

    Beside `end_with_parent`, and only where the thread that started the process lives on.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
