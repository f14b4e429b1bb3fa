"""The one base of everything that a user can cause and mend, and how commands print it."""

import contextlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

AGAIN = "Free some space or name another folder, then start the same command again"
HERE_AGAIN = "Free some space, then start the same command again"  # no other folder will do


class RvllmError(Exception):
    """What a user can cause; the message names the file, key or flag, and what to do.

    Every room derives its own from it. What does not is a fault of the program, and keeps its
    traceback.
    """


@contextlib.contextmanager
def report_errors(
    before: str | None = "refused: ", *others: type[BaseException], interrupted: str = ""
) -> Iterator[None]:
    """Ends the command with code 1 and the message alone, for `RvllmError`, `others` and what the
    machine refuses (OSError): a path that cannot be read or written, wherever it was met.

    before: what stands before the message; None: the name of the error's class. interrupted: what
    Ctrl-C prints, with code 130 as shells have it (128 + SIGINT); "" leaves Python's traceback.
    """
    try:
        yield
    except BrokenPipeError:  # of `report | head`; nothing more can be printed there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RvllmError, OSError, *others) as error:
        start = f"{type(error).__name__}: " if before is None else before
        # A text: the interpreter prints it, other hosts are given it.
        sys.exit(f"{start}{describe(error) if isinstance(error, OSError) else error}")
    except KeyboardInterrupt:
        if not interrupted:
            raise
        print(interrupted, file=sys.stderr)
        sys.exit(130)


def describe(error: OSError) -> str:
    """An error of the machine that no room has put in words: path, reason, bytes free, advice."""
    if isinstance(error, RvllmError) or error.filename is None:
        return str(error)
    path = Path(os.fsdecode(error.filename))
    if isinstance(error, FileNotFoundError):
        return f"{path}: is not there; correct the path"
    return (
        f"{path}: cannot be read or written ({error.strerror}), with {room(path.parent)}. {AGAIN}"
    )


def room(folder: Path) -> str:
    """What a file in `folder` may take, in words."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = "" if limit == resource.RLIM_INFINITY else f", {limit:,} allowed a file (ulimit -f)"
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.isdir(path))
    return f"{shutil.disk_usage(there).free:,} bytes free in {there}{files}"
