"""Files of JSON lines that grow while the work goes on and outlive being killed."""

import contextlib
import datetime
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.system.atomic import naming, replacing
from rvllm_jax.system.errors import RvllmError

_CONTINUES = "Free some space, then start the same command again: it continues"


class LinesError(RvllmError, ValueError):
    """A file of lines that cannot be used as it is; says where, and what to do."""


class JsonLines:
    """A file that one process at a time appends to, each record by one write.

    Opening it cuts off a last line that was not written to its end. Who opens it holds the lock of
    its folder (system/lock.py), or of the file. allow_nan: takes numbers that JSON has not, such
    as NaN.
    """

    def __init__(self, path: str | Path, *, allow_nan: bool = False):
        self.path, self._allow_nan = Path(path), allow_nan
        self._file = self._opened(self.path)
        self.cut = _cut_half_line(self._file)

    def _opened(self, path: Path) -> int:
        with naming(self.path, error=LinesError):
            return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)

    def replace(self, lines: str) -> None:
        """`lines`, each with its end, in the place of all that it holds; at once, or not at all."""
        with replacing(self.path, error=LinesError) as temporary:
            temporary.write_text(lines, encoding="utf-8")
        os.close(self._file)
        self._file = self._opened(self.path)

    def append(self, record: dict) -> None:
        """Adds one record. Raises ValueError for a number that JSON has not, unless allowed."""
        content = memoryview(dump(record, allow_nan=self._allow_nan).encode())
        with naming(self.path, advice=_CONTINUES, error=LinesError):
            while content:  # a full disk writes a part, then raises
                content = content[os.write(self._file, content) :]

    def sync(self) -> None:
        """Returns once all is on the disk; what is appended without it outlives the process."""
        with naming(self.path, advice=_CONTINUES, error=LinesError):
            try:
                os.fsync(self._file)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
                    raise

    def close(self) -> None:
        """Ends, once all is on the disk where the file system can."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dump(record: dict, *, allow_nan: bool = False) -> str:
    """`record` as one line."""
    return json.dumps(record, ensure_ascii=True, allow_nan=allow_nan) + "\n"


def read_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Each record with where it stands; a last line without its end is left out.

    Raises LinesError for a file that cannot be read and for a line that is no JSON object.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise LinesError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}: line {number}"
            try:
                record = json.loads(line, parse_constant=_no_number)
            except (ValueError, RecursionError) as error:
                raise LinesError(
                    f"{where}: not a line of JSON ({error}); remove it, and what it held is done "
                    "again"
                ) from error
            if not isinstance(record, dict):
                raise LinesError(
                    f"{where}: expected an object, got {type(record).__name__}; remove it"
                )
            yield where, record


def ends_whole(path: str | Path) -> bool:
    """Whether the last line, if there is one, is written to its end; `read_lines` leaves out one
    that is not."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def unlike(there: Mapping[str, Any], now: Mapping[str, Any], longest: int | None = None) -> str:
    """What a file was made with, that is not what it would be continued with; "" where all is.

    longest: characters of a value that are shown; None: all.
    """
    return "; ".join(
        f"{name}: {repr(there.get(name))[:longest]} there, {repr(now.get(name))[:longest]} now"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    )


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _cut_half_line(file: int) -> int:
    """Ends the file behind its last newline; returns how many bytes that cut off."""
    size = end = os.fstat(file).st_size
    while end:
        start = max(0, end - (1 << 16))
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    os.ftruncate(file, end)
    return size - end
