"""How a run ends before its time: SIGTERM, and what is closed on the way out of an error."""

import signal
from collections.abc import Callable

from absl import logging

INTERRUPTED = 75  # exit code after SIGTERM: the state is saved, start the same command again


def end_on_sigterm() -> None:
    """From now on SIGTERM exits with `INTERRUPTED`, for a time when all that counts is on disk."""

    def end(signum, frame) -> None:
        raise SystemExit(INTERRUPTED)

    signal.signal(signal.SIGTERM, end)


class Interrupt:
    """While it is entered, SIGTERM is noted in `requested` instead of ending the process."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _note(self, signum, frame) -> None:
        logging.warning("signal %d: saving, then exiting", signum)
        self.requested = True


def closing(close: Callable[[], None]):
    """An exit of a `with` that calls `close`.

    Of two errors the first says what happened: where one is under way already, that of `close` is
    only logged.
    """

    def leave(kind, error, trace) -> None:
        try:
            close()
        except Exception as another:
            if error is None or isinstance(error, SystemExit):
                raise
            logging.error("while ending: %s", another)

    return leave
