"""One writer at a time: of a folder, or of a file; on one host or on many.

The lock is a file in the folder, or beside the file. It says who writes: host, process, command,
since when. Whether that process still lives is known by three signs, as none is good everywhere:

  flock     ends with its process. Disks have it; NFS has it among all hosts, or within each; FUSE
            (buckets) within a host, or not at all.
  process   of this machine: there is one of that number and start time.
  beat      of another machine: its lock is written anew every BEAT seconds. One that has not been
            for STALE seconds is of a process that is dead, or cut off from the folder.

So what was killed gives way at once on its machine, and after STALE seconds everywhere. Readers
take no lock, and see none: a lock is removed at the end of the work.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from rvllm_jax.system.atomic import naming
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.lines import now

LOCK = "lock"  # in a folder that is written
BEAT = 10.0  # seconds between two signs of life
STALE = 180.0  # seconds; the cache of a bucket's mount and clocks that differ are within it
_POLL = 0.5  # seconds between two looks at another's lock
_LONGEST = 300  # characters of a command that is named
_SIZE = 4096  # bytes of a lock, always: one write replaces all of it


class LockError(RvllmError, RuntimeError):
    """Another process is writing there, or has taken over; the message names it."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who writes, as the lock says. `token` is of this one taking, `beat` of the last sign."""

    host: str
    machine: str
    pid: int
    started: str
    command: str
    since: str
    token: str
    beat: str

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on host {self.host}, since {self.since})"


@contextlib.contextmanager
def locked(
    target: str | Path,
    *,
    is_file: bool = False,
    wait: Callable[[str], None] | None = None,
    advice: str = "name another folder",
    stays: bool = False,
) -> Iterator[None]:
    """Within it no other process writes `target`: a folder, made if absent, or a file.

    wait: waits for another writer's end and is called once with a line that names it; None: that is
    refused. advice: the way on that the message names. stays: the lock's file stays, empty.

    Raises LockError, and WriteError where the folder takes no file.
    """
    target = Path(target)
    made = [] if is_file else [p for p in (target, *target.absolute().parents) if not p.exists()]
    path = target.with_name(f".{target.name}.{LOCK}") if is_file else target / LOCK
    with contextlib.ExitStack() as ends:
        ends.callback(_remove_empty, made)  # what was refused leaves no folder
        file = _take(path, target, wait, advice)
        ends.callback(os.close, file)
        ends.callback(_give_up, file, path, stays)
        holder = _this_process()
        with naming(target, advice=_sentence(advice)):
            _beat(file, holder)
        released = threading.Event()
        beats = threading.Thread(
            target=_keep, args=(file, path, target, holder, released), name="lock", daemon=True
        )
        beats.start()
        ends.callback(beats.join)
        ends.callback(released.set)
        yield


def _take(path: Path, target: Path, wait: Callable[[str], None] | None, advice: str) -> int:
    """The file at `path`, open, and locked by flock where there is such a thing."""
    seen, changed, looks, waits = None, time.monotonic(), 0, False
    while True:
        with naming(target, advice=_sentence(advice)):
            if path.parent == target:
                target.mkdir(parents=True, exist_ok=True)
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                if path.parent == target:
                    continue  # another's end has removed it since
                raise
        free, holder = _flock(file), _read(file)
        if holder != seen:
            seen, changed, looks = holder, time.monotonic(), looks + 1
        unchanged = time.monotonic() - changed
        if free and (holder is None or _is_dead(holder, unchanged)):
            if _is_at(file, path):
                return file
            os.close(file)
            continue  # it was removed or replaced since it was opened
        os.close(file)
        if holder is None and unchanged < 1:
            time.sleep(0.02)  # it is about to write who it is
            continue
        # Whether a process of another machine lives is seen by its next beat.
        lives = not free or _is_here(holder) or looks > 1
        line = f"{target}: is being written by {holder or 'another process'}"
        if lives and wait is None:
            raise LockError(
                f"{line}. Wait for its end or stop it, or {advice}{_silent(holder, path)}"
            )
        if not waits and lives:
            wait(f"{line}; waiting for its end")
        elif not waits:
            line += f"; waiting for a sign of life of it, {STALE:.0f} s at most"
            wait(line) if wait else print(line, file=sys.stderr, flush=True)
        waits = True
        time.sleep(_POLL)


def _keep(file: int, path: Path, target: Path, holder: Holder, released: threading.Event) -> None:
    """Gives signs of life; ends the process where another one has taken its place.

    That is one of another machine, where this one was stopped for long, or where both began at the
    same moment and the file system has no locks: soon afterwards it is known whose lock it is.
    """
    pause = min(1.0, BEAT)
    while not released.wait(pause):
        other = holder
        with contextlib.suppress(OSError):
            with open(path, "rb") as now_there:
                other = _read(now_there.fileno()) or holder
        if other.token != holder.token:
            line = f"{target}: is being written by {other}, which has taken over; this one ends"
            os.write(2, f"error: {line}\n".encode(errors="backslashreplace"))
            os._exit(1)  # in the midst of whatever it does: its ways to end would write
        with contextlib.suppress(OSError):  # a disk that is full for a time, say
            _beat(file, holder)
        pause = BEAT


def _beat(file: int, holder: Holder) -> None:
    record = dataclasses.asdict(holder) | {"beat": f"{time.time():.3f}"}
    os.pwrite(file, json.dumps(record).ljust(_SIZE - 1).encode() + b"\n", 0)
    with contextlib.suppress(OSError):  # not every file system can
        os.fsync(file)  # a bucket's mount sends it on


def _give_up(file: int, path: Path, stays: bool) -> None:
    with contextlib.suppress(OSError):
        if stays:
            os.ftruncate(file, 0)
        elif _is_at(file, path):
            path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty
        for folder in folders:
            folder.rmdir()


def _sentence(advice: str) -> str:
    return advice[:1].upper() + advice[1:]


def _flock(file: int) -> bool:
    """Whether no other open file is known to hold the lock; true too where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _read(file: int) -> Holder | None:
    """Who is named in a lock; None where nobody is, as in those of earlier versions."""
    try:
        record = json.loads(os.pread(file, _SIZE, 0))
        return Holder(**{field.name: record[field.name] for field in dataclasses.fields(Holder)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _this_process() -> Holder:
    command = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    command = " ".join(command.split())  # on one line
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        command=command if len(command) <= _LONGEST else f"{command[:_LONGEST]}...",
        since=now(),
        token=uuid.uuid4().hex,
        beat="",
    )


@functools.cache
def _machine() -> str:
    """This start of this machine, and its space of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" where there is none, or its rest."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_here(holder: Holder | None) -> bool:
    return holder is not None and holder.machine == _machine()


def _is_dead(holder: Holder, unchanged: float) -> bool:
    """unchanged: seconds since its last sign of life that was seen."""
    if _is_here(holder):
        return not holder.started or _started(holder.pid) != holder.started
    return max(unchanged, _age(holder)) > STALE


def _age(holder: Holder) -> float:
    """Seconds since the last sign of life, by the two machines' clocks."""
    try:
        return time.time() - float(holder.beat)
    except ValueError:
        return 0.0


def _silent(holder: Holder | None, path: Path) -> str:
    """What is to be done where a server goes on locking for a machine that is gone."""
    if holder is None or _is_here(holder) or _age(holder) < STALE:
        return ""
    return (
        f". It gave its last sign of life {_age(holder):.0f} s ago: if host {holder.host} is gone, "
        f"remove {path}"
    )
