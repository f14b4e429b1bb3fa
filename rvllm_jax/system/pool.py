"""Worker processes: watched, one job at a time each, and what they ask of the system.

A job may hang a process or crash it, as a broken video does to a decoder, whatever is checked
before. `WatchedPool` ends such a process and names its job; the other jobs go on.
`concurrent.futures` cannot: it has no time limit on a job in work, and a process that dies breaks
the pool with all of its jobs.
"""

import collections
import contextlib
import ctypes
import math
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from rvllm_jax.system.errors import RvllmError

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_POLL = 0.5  # seconds between two checks of the workers
_START = 600.0  # seconds that a process may take to start, on a busy machine and a slow disk
_MEMORY = 4 << 30  # bytes that a worker may take: a file's header must not bring down the machine
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # exit codes with which no job ends its process

HUNG, CRASHED, KILLED = "hung", "crashed", "killed"


class WorkerError(RvllmError):
    """A worker process that ended, or never started, while no job was to blame."""


class JobOutcome(NamedTuple):
    """How a job ended: with a result, or with the end of its process."""

    job: Any
    result: Any = None  # what `work` returned
    failure: str = ""  # or HUNG, CRASHED or KILLED: from outside, as for memory
    reason: str = ""  # of a failure, such as "SIGSEGV" or "exit code 1"
    mark: int = 0  # the last one that the job gave


class WatchedPool:
    """Spawned processes that do jobs, of which one that hangs or dies is replaced.

    `work(job, beat)` is a function of a module, since the processes import it. It gives a sign of
    life by `beat(mark)`: what it is at, an int, or -1 where it is at nothing that could hang, and
    is not timed. What it raises as `RvllmError` is raised by `results`; any other exception is the
    end of its process.

    Scripts that use it need `if __name__ == "__main__":`. As a context manager it ends its
    processes. on_check: called some times a second with the marks of all jobs in work.
    """

    def __init__(
        self,
        work: Callable[[Any, Callable[[int], None]], Any],
        workers: int,
        *,
        time_limit: float,
        on_check: Callable[[list[int]], None] = lambda marks: None,
    ):
        self._work, self._workers, self._on_check = work, workers, on_check
        self._time_limit = time_limit  # seconds without a sign of life
        self._poll = min(_POLL, time_limit / 10)
        self._waiting: collections.deque = collections.deque()
        self._team: list[_Worker] = []

    def __enter__(self) -> "WatchedPool":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._team:
            worker.end()

    def put(self, job: Any) -> None:
        """Has a job done next, also while `results` is iterated, as one that is to be repeated."""
        self._waiting.appendleft(job)

    def results(self, jobs: Iterable[Any]) -> Iterator[JobOutcome]:
        """Yields how each job ended, in any order. Raises `WorkerError`, or an error of `work`."""
        self._waiting.extend(jobs)
        self._give()
        while busy := [worker for worker in self._team if worker.job is not None]:
            multiprocessing.connection.wait([worker.pipe for worker in busy], self._poll)
            for worker in busy:
                outcome = worker.check(self._time_limit, self._poll)
                if outcome is None:
                    continue
                if outcome.failure:
                    self._team.remove(worker)
                self._give()  # before the caller is at work, or fails
                yield outcome
            self._give()  # what it has put back
            self._on_check([worker.mark for worker in self._team if worker.job is not None])

    def _give(self) -> None:
        for worker in self._team:
            if self._waiting and worker.job is None:
                worker.give(self._waiting.popleft())
        while self._waiting and len(self._team) < self._workers:
            self._team.append(_Worker(self._work))
            self._team[-1].give(self._waiting.popleft())


class _Worker:
    """A process that does the jobs that it is given, seen from its parent."""

    def __init__(self, work: Callable[[Any, Callable[[int], None]], Any]):
        # Spawned, not forked: the parent may hold JAX's threads and devices.
        context = multiprocessing.get_context("spawn")
        self._state = context.RawArray("q", [-1, 0])  # mark; number of signs of life
        self.pipe, its_end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(work, its_end, self._state), daemon=True
        )
        with deaf_to_interrupts():
            self.process.start()
        its_end.close()  # so that the pipe ends with the process
        self.job: Any = None

    def give(self, job: Any) -> None:
        self.job = job
        self._beats, self._idle, self._looked = self._state[1], 0.0, time.monotonic()
        with contextlib.suppress(OSError):  # it has ended: `check` will find out
            self.pipe.send(job)

    @property
    def mark(self) -> int:
        return self._state[0]

    def check(self, time_limit: float, poll: float) -> JobOutcome | None:
        """How its job ended, None while it is in work; checks should be `poll` seconds apart."""
        if answer := self._receive():
            result, error = answer
            if error is not None:
                raise error
            job, self.job = self.job, None
            return JobOutcome(job, result)
        now = time.monotonic()
        mark, beats = self._state
        # Waking from the machine's sleep, the parent must not take it for the worker's.
        self._idle += min(now - self._looked, 2 * poll)
        self._looked = now
        if beats != self._beats:
            self._beats, self._idle = beats, 0.0
        limit = _START if beats == 0 else time_limit if mark >= 0 else math.inf
        hangs = self.process.is_alive()
        if hangs and self._idle < limit:
            return None
        self.end()
        code = self.process.exitcode
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if hangs:
            reason = f"no sign of life for {limit:g} s"
        if mark < 0:
            raise WorkerError(
                f"a worker process ended outside of any work ({reason}; its own message, if any, "
                'is above). A script that starts one needs `if __name__ == "__main__":`'
            )
        failure = HUNG if hangs else KILLED if code in _FROM_OUTSIDE else CRASHED
        return JobOutcome(self.job, None, failure, reason, mark)

    def _receive(self) -> tuple[Any, RvllmError | None] | None:
        """(result, error) of its job; None where there is nothing, or the process has ended."""
        try:
            return self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(work: Callable, pipe: multiprocessing.connection.Connection, state: Any) -> None:
    """The life of a worker process."""
    killed_with_parent()
    end_with_parent()
    _limit_memory()
    state[1] = 1  # it has started

    def beat(mark: int) -> None:
        state[0] = mark
        state[1] += 1

    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = work(job, beat), None
        except RvllmError as error:
            answer = None, error
        beat(-1)
        pipe.send(answer)


def _limit_memory() -> None:
    """Lets an absurd allocation fail rather than bring down the machine."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        taken = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (taken + _MEMORY, hard))


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
    """Ends this worker when its parent was killed: nobody is left to end it.

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
