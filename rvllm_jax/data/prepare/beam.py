"""Writing a frame store's shards as an Apache Beam pipeline, where one machine is not enough.

A shard is one element. A worker writes it as a local one does, into a folder that every worker and
the starting process see by one path: a shared file system (NFS, Filestore, Lustre), or a bucket
mounted by gcsfuse. The videos' paths hold on the workers too, and
rvllm_jax is installed there (Beam's --setup_file or --sdk_container_image). What is finished is
read from that folder, so that a pipeline that was killed continues behind it, with Beam or without.

Beam is an extra, imported where it is used.
"""

import functools
import glob
import re
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import logging

from rvllm_jax.data.store.shard_writer import write_shards
from rvllm_jax.data.store.shards import ASIDE, DONE, FrameStoreError, Task, read_aside, write_aside
from rvllm_jax.system.atomic import move, read_json_or_empty
from rvllm_jax.system.lock import LOCK

_POLL = 0.5  # seconds between two looks at what is finished
_LOCAL = (None, "DirectRunner")  # Beam's names of the runner on this machine


def runner(arguments: Sequence[str]) -> Callable[[Sequence[Task]], Iterator[dict]]:
    """What `write_store` takes as `run_tasks`: writes the shards by a Beam pipeline.

    Args:
        arguments: Beam's own options, such as ["--runner=DirectRunner",
            "--direct_num_workers=2", "--direct_running_mode=multi_processing"], or those of
            Dataflow, Flink or Spark.

    Returns:
        A function that takes the shards to write and yields the summary of each when it is there.

    Raises:
        FrameStoreError: apache_beam is not installed, or the local runner is given an option that
            Beam does not know. From the function that is returned: the folder is an address or no
            worker sees it, or the pipeline failed.
    """
    try:
        import apache_beam  # noqa: F401  known before any video is looked at
    except ImportError as error:
        raise FrameStoreError(
            f"{' '.join(arguments)}: apache_beam is not installed ({error}). Install it by "
            "`pip install -e .[beam]` in an environment of its own, since it needs older versions "
            "of some packages than requirements.lock has; or leave out the runner"
        ) from error
    _options(arguments)
    return functools.partial(_run, tuple(arguments))


def _run(arguments: Sequence[str], tasks: Sequence[Task]) -> Iterator[dict]:
    if not tasks:
        return
    folder = tasks[0].folder
    check_folder(folder)
    # Of this run alone, and beside the store, which may hold nothing but itself. A worker that is
    # left over from an earlier run finds its own gone, and can write no more.
    for stale in folder.parent.glob(f"{glob.escape(folder.name)}.beam-????????"):
        shutil.rmtree(stale, ignore_errors=True)
    work = folder.parent / f"{folder.name}.beam-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        pipeline = _Pipeline(arguments, tasks, work)
        waiting = {task.shard: task for task in tasks}
        while waiting:
            ended = pipeline.ended.wait(_POLL)  # known before looking: what is missing then, is
            for shard, task in list(waiting.items()):
                if summary := _finished(task):
                    del waiting[shard]
                    yield summary
            if ended and waiting:
                raise pipeline.failure(waiting)
        pipeline.join()  # Beam's own end: its workers must not lose their parent
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Pipeline(threading.Thread):
    """A pipeline in work: some runners return at once, others only when all is done."""

    def __init__(self, arguments: Sequence[str], tasks: Sequence[Task], work: Path):
        super().__init__(daemon=True)  # Ctrl-C does not wait for it
        self.ended, self._arguments = threading.Event(), arguments
        self._tasks, self._work = tasks, work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            _pipeline(self._arguments, self._tasks, self._work).run().wait_until_finish()
        except BaseException as error:  # of any kind: it is raised where the caller waits
            self._error = error
        finally:
            self.ended.set()

    def failure(self, waiting: dict[int, Task]) -> FrameStoreError:
        folder = self._tasks[0].folder
        if self._error is None:
            why = "it ended, but they are not in this folder: do all workers see it by this path?"
        else:
            lines = str(self._error).strip().splitlines() or [repr(self._error)]
            why = lines[-1]
        failure = FrameStoreError(
            f"{folder}: the Beam pipeline left {len(waiting)} of {len(self._tasks)} shards "
            f"unwritten ({', '.join(map(str, sorted(waiting)[:10]))}): {why} Prepare again: "
            "finished shards are kept"
        )
        failure.__cause__ = self._error
        return failure


def _options(arguments: Sequence[str]):
    """Beam's options of the arguments; what it does not know is refused, or warned of."""
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(list(arguments))
    known = options.get_all_options()
    unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    named = ", ".join(f"--{name}" for name in sorted(unknown))
    if known["runner"] not in _LOCAL:
        if unknown:  # of a version of Flink, say: Beam hands them on
            logging.warning("options unknown to Beam go to %s: %s", known["runner"], named)
        return options
    if unknown:
        raise FrameStoreError(f"{named}: unknown here, and to Beam's local runner; correct it")
    # It would first download Prism, a program of Beam's that takes its place, and start it; not
    # where this is set, which concerns triggers, and there are none.
    return PipelineOptions([*arguments, "--allow_unsafe_triggers"])


def _pipeline(arguments: Sequence[str], tasks: Sequence[Task], work: Path):
    import apache_beam as beam

    pipeline = beam.Pipeline(options=_options(arguments))
    _ = (
        pipeline
        | "Shards" >> beam.Create(list(tasks))
        | "Spread" >> beam.Reshuffle()  # else all of them would be fused into one bundle
        | "Write" >> beam.Map(_write, work=work)
    )
    return pipeline


def _write(task: Task, work: Path) -> int:
    """Writes a shard on a worker: apart, then moved, since a runner may start it twice."""
    if _finished(task):
        return task.shard
    if not (task.folder / LOCK).is_file() or not work.is_dir():
        raise FrameStoreError(
            f"{task.folder}: not seen by the worker {socket.gethostname()}, or of a run that has "
            "ended; give a folder on a file system that all workers mount at this path."
        )
    apart = Path(tempfile.mkdtemp(prefix=f"{task.shard:05d}-", dir=work))
    task_apart = task._replace(folder=apart)
    if known := read_aside(task):
        write_aside(task_apart, known)
    try:
        list(write_shards([task_apart], 1))
    except BaseException:
        _move(task, apart, {task.path(ASIDE).name})  # not to be met again
        raise
    if not _finished(task):  # by another attempt meanwhile
        _move(task, apart, {path.name for path in apart.iterdir()})
    shutil.rmtree(apart, ignore_errors=True)
    return task.shard


def _move(task: Task, apart: Path, names: set[str]) -> None:
    """Moves files into the store, the one that declares the shard finished last."""
    done = task.path(DONE).name
    for name in sorted(names, key=lambda name: name == done):
        if (apart / name).is_file():
            move(apart / name, task.folder / name)


def _finished(task: Task) -> dict:
    """The summary of a shard of this preparation, or nothing where it is not written yet."""
    summary = read_json_or_empty(task.path(DONE))
    return summary if summary.get("fingerprint") == task.fingerprint else {}


def check_folder(folder: str | Path) -> None:
    """Raises `FrameStoreError` for an address, such as gs://bucket, where a folder is expected."""
    if re.match(r"[a-z][a-z0-9+]+:/", str(folder)):  # Path("gs://a") is "gs:/a"
        raise FrameStoreError(
            f"{folder}: an address is not supported as a store's folder, since shards are renamed "
            "and locked as files. Mount the bucket (gcsfuse) or a shared file system on all "
            "workers and give that path; the videos likewise"
        )
