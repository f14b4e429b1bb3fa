"""What a run reports while it trains: metrics.jsonl, TensorBoard events, one progress bar a stage.

`metrics.jsonl` is the record; the events are made from it. Both hold each step once, also when a
run was killed and continued from an earlier checkpoint.
"""

import contextlib
import json
import math
import numbers
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import tqdm

from rvllm_jax.system.errors import RvllmError

_RESERVED = ("step", "stage", "kind")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsError(RvllmError, RuntimeError):
    """metrics.jsonl cannot be read or written; the message says where and what to do."""


class Metrics:
    """Records of a run, one a (step, kind), in `metrics.jsonl` and `tensorboard/`.

    Opening drops the records of steps after `start_step`, which the continued run makes again,
    and a last line that a killed process left half-written. Records are buffered: call `flush`
    before every checkpoint, so that none that precedes it can be lost.

    Args:
      workdir: the working directory; made when it is not there.
      start_step: the step of the checkpoint that the run continues from; 0 for a new run.
      writes: False on every process of a distributed run but one; then nothing is touched.

    Raises:
      MetricsError: a line other than the last is not a record, or the files cannot be written.
    """

    def __init__(self, workdir: str | Path, start_step: int, *, writes: bool = True):
        self._writes = writes
        if not writes:
            return
        self.path = Path(workdir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = [r for r in _read(self.path) if r["step"] <= start_step]
        self._seen = {(r["step"], r["kind"]) for r in records}
        with self._writing():
            self._open(records)

    def _open(self, records: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(record) for record in records)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        folder = self.path.parent / "tensorboard"
        folder.mkdir(exist_ok=True)
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        # It takes in torch where that is installed: seconds, that a data worker need not wait.
        from tensorboardX.event_file_writer import EventsWriter

        # Not SummaryWriter: its flush does not wait for what is still in its queue.
        self._events = EventsWriter(str(folder / "events"))
        for record in records:
            self._add_events(record)
        self.flush()

    def log(self, step: int, stage: str, values: Mapping[str, Any], kind: str = "train") -> bool:
        """Records `values` of a step, at most once a (step, kind).

        Args:
          step: the global step, counted in finished updates.
          stage: the stage's name.
          values: numbers by name, or arrays of one element; NaN and infinities are kept.
          kind: "train", "validation", or whatever the caller records apart.

        Returns:
          Whether it was recorded. A second record of the same step and kind is not: a run that is
          started again repeats what it did at the step of its checkpoint.
        """
        record = {"step": int(step), "stage": stage, "kind": kind}
        for name, value in values.items():
            if name in _RESERVED:
                raise ValueError(f"value {name!r}: {_RESERVED} name other things; rename it")
            record[name] = _number(name, value)
        if not self._writes or (record["step"], kind) in self._seen:
            return False
        self._seen.add((record["step"], kind))
        with self._writing():
            self._file.write(_line(record))
            self._add_events(record)
        return True

    def flush(self) -> None:
        """Returns when all records are on the disk."""
        if self._writes:
            with self._writing():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._events.flush()

    def close(self) -> None:
        """Flushes, and ends."""
        if self._writes:
            with self._writing():
                try:
                    self.flush()
                finally:
                    self._file.close()
                    self._events.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(self.path.parent).free
            raise MetricsError(
                f"{self.path} or {self.path.parent / 'tensorboard'}: cannot be written: {error} "
                f"({free:,} bytes are free there). Free space there, or mend the cause, and start "
                "the same command again: it goes on from the newest checkpoint."
            ) from error

    def _add_events(self, record: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=f"{record['kind']}/{name}", simple_value=value)
            for name, value in record.items()
            # TensorBoard draws no others; metrics.jsonl has them.
            if name not in _RESERVED and math.isfinite(value)
        ]
        event = Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))
        self._events.write_event(event)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order: `{"step", "stage", "kind", NAME: number, ...}`.

    A last line that is half-written is left out. Raises MetricsError on any other bad line.
    """
    return list(_read(Path(path)))


def _read(path: Path) -> Iterable[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step, _, _ = (record[key] for key in _RESERVED)
            if not isinstance(step, int):
                raise ValueError(f"step {step!r} is not an integer")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # what follows the last line end: nothing, or half a record
                return
            raise MetricsError(
                f"{path}, line {number}: not a record ({error!r}): {line[:80]!r}. "
                "Delete this line to continue without it."
            ) from error
        if number == len(lines):
            return  # complete by chance, but its line end was not written
        yield {k: v if k in _RESERVED else _NON_FINITE.get(v, v) for k, v in record.items()}


def _line(record: Mapping[str, Any]) -> str:
    """`record` as a line of JSON, which has no NaN and no infinities: they become strings."""
    values = {k: v if k in _RESERVED or math.isfinite(v) else _name(v) for k, v in record.items()}
    return json.dumps(values, allow_nan=False) + "\n"


def _name(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(name: str, value: Any) -> int | float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, numbers.Real):
        raise TypeError(f"value {name!r}: expected a number, got {type(value).__name__}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


class Progress:
    """The progress of one stage: a bar on a terminal, elsewhere a line now and then.

        with Progress("adamw", total=400, initial=120, batch=8) as progress:
            progress.update(loss=0.43)

    Args:
      stage: its name.
      total: number of its steps.
      initial: how many of them an earlier run has done.
      batch: clips a step.
      file: where to write; standard error by default.
      every: seconds between lines, where there is no terminal.
      shown: False on every host but one: nothing is written.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        initial: int = 0,
        batch: int = 1,
        file: TextIO | None = None,
        every: float = 10.0,
        shown: bool = True,
    ):
        self._stage, self._total, self._initial, self._step = stage, total, initial, initial
        self._file = sys.stderr if file is None else file
        self._batch, self._every, self._loss = batch, every, math.nan
        self._started = self._printed = time.monotonic()
        self._told = initial  # the step of the last line
        self._bar, self._shown = None, shown
        if shown and self._file.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=stage,
                file=self._file,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._status())
            self._bar.close()
        elif self._step > self._told:
            self._print()

    def update(self, steps: int = 1, *, loss: float | None = None) -> None:
        """Counts `steps` more; `loss` is shown until the next one is given."""
        self._step += steps
        self._loss = self._loss if loss is None else float(loss)
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(), refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._printed >= self._every:
            self._print()

    def _print(self) -> None:
        self._printed, self._told = time.monotonic(), self._step
        if not self._shown:
            return
        step = f"{self._step}/{self._total}"
        print(f"{self._stage}  step {step}, {self._status()}", file=self._file, flush=True)

    def _status(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        done = self._step - self._initial
        left = (self._total - self._step) * seconds / done if done else math.nan
        parts = [f"loss {self._loss:.4f}", f"{done * self._batch / seconds:.1f} clips/s"]
        parts.append(f"{_clock(left)} left" if math.isfinite(left) else "--:-- left")
        return ", ".join(parts + _memory())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def _memory() -> list[str]:
    """The memory in use, of this process and, where it can be asked, of its first device."""
    parts = []
    statm = Path("/proc/self/statm")  # pages; not there but on Linux
    if statm.exists():
        resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{resident / 2**30:.1f} GiB")
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        parts.append(f"device {stats['bytes_in_use'] / 2**30:.1f} GiB")
    return parts
