"""The one base of everything that a user can cause and mend, and how commands print it."""

import contextlib
import sys
from collections.abc import Iterator


class RvllmError(Exception):
    """What a user can cause; the message names the file, key or flag, and what to do.

    Every room derives its own from it. What does not is a fault of the program, and keeps its
    traceback.
    """


@contextlib.contextmanager
def report_errors(
    before: str | None = "refused: ", *others: type[BaseException], interrupted: str = ""
) -> Iterator[None]:
    """Ends the command with code 1 and the message alone, for `RvllmError` and `others`.

    before: what stands before the message; None: the name of the error's class. interrupted: what
    Ctrl-C prints, with code 130 as shells have it (128 + SIGINT); "" leaves Python's traceback.
    """
    try:
        yield
    except (RvllmError, *others) as error:
        start = f"{type(error).__name__}: " if before is None else before
        sys.exit(f"{start}{error}")  # a text: the interpreter prints it, other hosts are given it
    except KeyboardInterrupt:
        if not interrupted:
            raise
        print(interrupted, file=sys.stderr)
        sys.exit(130)
