"""Shards written by processes of their own, watched frame by frame.

A video may hang the decoder or crash its process, whatever is checked before. Each worker process
writes one shard after the other and leaves a sign of life at every frame in memory that it shares
with the parent. Where the signs stop, or the process ends, the parent sets the video in work aside
by name, on disk, so that a continued preparation does not meet it again, and has a new process
write the shard without it.
"""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rvllm_jax.data.store import shard_writer, shards
from rvllm_jax.data.store.shards import FrameStoreError, Task
from rvllm_jax.data.video.container import REPLACE
from rvllm_jax.system.pool import deaf_to_interrupts, end_with_parent, killed_with_parent

_POLL = 0.5  # seconds between two looks at a worker
_MEMORY = 4 << 30  # bytes that a worker may take: a header must not bring down the machine
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # how no decoder ends by itself


def write_shard(task: Task) -> dict:
    """Writes one shard in a watched process; returns its summary. See `write_shards`."""
    (summary,) = write_shards([task], 1)
    return summary


def write_shards(
    tasks: Sequence[Task], workers: int, in_work: Callable[[int], None] = lambda videos: None
) -> Iterator[dict]:
    """Yields the summary of each shard when it is finished, in any order.

    A video of which no frame comes for `Task.time_limit` seconds, or whose process crashes, is set
    aside, recorded in the store's folder; the other videos of its shard are written. A process that
    was killed from outside, as for memory, gets a second try.

    Args:
        tasks: the shards to write.
        workers: how many processes, at least 1. They are spawned: a script that calls this needs
            `if __name__ == "__main__":`.
        in_work: called now and then with the number of videos that are done of unfinished shards.

    Raises:
        FrameStoreError: the folder cannot be written, or a process ends outside of any video.
    """
    waiting = collections.deque(tasks)
    killed: set[tuple[int, str]] = set()
    team: list[_Worker] = []
    try:
        for _ in range(min(workers, len(tasks))):
            team.append(_Worker(waiting.popleft()))
        while busy := [worker for worker in team if worker.task is not None]:
            poll = min([_POLL, *(worker.task.time_limit / 10 for worker in busy)])
            multiprocessing.connection.wait([worker.pipe for worker in busy], poll)
            for worker in busy:
                summary = worker.summary()
                if summary is not None:
                    worker.give(waiting.popleft() if waiting else None)
                    yield summary
                elif failure := worker.failure(poll):
                    _set_aside(worker.task, *failure, killed)
                    team[team.index(worker)] = _Worker(worker.task)
            in_work(sum(max(0, worker.position) for worker in team if worker.task is not None))
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process that writes the shards it is given, seen from the parent."""

    def __init__(self, task: Task):
        # Spawned, not forked: the parent may hold JAX's threads and devices.
        context = multiprocessing.get_context("spawn")
        # The position in its shard of the video in work, -1 between videos; signs of life so far.
        self._state = context.RawArray("q", [-1, 0])
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._state), daemon=True)
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()  # so that the pipe ends with the process
        self.give(task)

    def give(self, task: Task | None) -> None:
        self.task = task
        self._seen, self._idle, self._looked = self._state[1], 0.0, time.monotonic()
        if task is not None:
            with contextlib.suppress(OSError):  # it has ended: `failure` will find out
                self.pipe.send(task)

    @property
    def position(self) -> int:
        return self._state[0]

    def summary(self) -> dict | None:
        """What the process says of its finished shard, if it is finished."""
        try:
            message = self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            return None
        if isinstance(message, FrameStoreError):
            raise message
        return message

    def failure(self, poll: float) -> tuple[int, str, int] | None:
        """(position of the video in work, what happened, exit code) of a process that is no use."""
        now = time.monotonic()
        position, seen = self._state
        # Waking from the machine's sleep, the parent must not take it for the worker's.
        self._idle += min(now - self._looked, 2 * poll)
        self._looked = now
        if seen != self._seen or position < 0:
            self._seen, self._idle = seen, 0.0
        if self._process.is_alive() and self._idle < self.task.time_limit:
            return None
        hangs = self._process.is_alive()
        self.end()
        code = self._process.exitcode
        if hangs:
            return position, f"no new frame for {self.task.time_limit:g} s", 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if position < 0:
            raise FrameStoreError(
                f"{self.task.folder}: a process that writes frames ended outside of any video "
                f"({how}; its own message, if any, is above). Prepare again: finished shards are "
                "kept"
            )
        return position, f"the process that decodes it ends ({how})", code

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()
        if self.task is not None:
            shards.remove_temporaries(self.task)


def _set_aside(
    task: Task, position: int, what: str, code: int, killed: set[tuple[int, str]]
) -> None:
    """Records on disk that a video is not to be tried again."""
    name, path = task.videos[position]
    if code in _FROM_OUTSIDE and (task.shard, name) not in killed:
        killed.add((task.shard, name))
        return
    reasons = shards.read_aside(task) | {name: f"{path}: {what}. {REPLACE}"}
    shards.write_aside(task, reasons)


def _work(pipe: multiprocessing.connection.Connection, state) -> None:
    """The life of a worker process."""
    killed_with_parent()
    end_with_parent()
    _limit_memory()

    def beat(position: int) -> None:
        state[0] = position
        state[1] += 1

    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(shard_writer.write_shard(task, beat))
        except FrameStoreError as error:
            pipe.send(error)


def _limit_memory() -> None:
    """Lets an absurd allocation fail rather than bring down the machine."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        taken = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (taken + _MEMORY, hard))
