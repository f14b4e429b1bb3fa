"""What a run records while it trains: metrics.jsonl, and TensorBoard events made from it.

Both hold each step once, also when a run was killed and continued from an earlier checkpoint.
"""

import contextlib
import json
import math
import numbers
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.system import atomic
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.lines import JsonLines, LinesError, dump, read_lines

_RESERVED = ("step", "stage", "kind")
_NON_FINITE = ("NaN", "Infinity", "-Infinity")  # strings in the file: JSON has no such numbers


class MetricsError(RvllmError, RuntimeError):
    """metrics.jsonl cannot be read or written; the message names the line and what to do."""


class Metrics:
    """Records of a run, one a (step, kind), in `metrics.jsonl` and `tensorboard/`.

    Opening drops the records of steps after `start_step`, which the continued run makes again,
    and a last line that a killed process left half-written. Call `flush` before every checkpoint,
    so that none that precedes it can be lost.

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
        atomic.make_folder(self.path.parent)
        records = [record for record in read(self.path) if record["step"] <= start_step]
        self._recorded = {(record["step"], record["kind"]) for record in records}
        with self._writing():
            lines = "".join(dump(_plain(record)) for record in records)
            atomic.write_text(self.path, lines, synced=True, error=MetricsError)
            self._lines = JsonLines(self.path)
            self._open_events(records)

    def _open_events(self, records: list[dict[str, Any]]) -> None:
        folder = atomic.make_folder(self.path.parent / "tensorboard")
        for events in folder.glob("events.out.tfevents.*"):
            events.unlink()
        # It takes in torch where that is installed: seconds, that a data worker need not wait.
        from tensorboardX.event_file_writer import EventsWriter

        # Not SummaryWriter: its flush does not wait for what is still in its queue.
        self._events = EventsWriter(str(folder / "events"))
        for record in records:
            self._add_events(record)
        self._events.flush()

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
        if not self._writes or (record["step"], kind) in self._recorded:
            return False
        self._recorded.add((record["step"], kind))
        with self._writing():
            self._lines.append(_plain(record))
            self._add_events(record)
        return True

    def flush(self) -> None:
        """Returns when all records are on the disk."""
        if self._writes:
            with self._writing():
                self._lines.sync()
                self._events.flush()

    def close(self) -> None:
        """Flushes, and ends."""
        if self._writes:
            with self._writing():
                try:
                    self.flush()
                finally:
                    self._lines.close()
                    self._events.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        advice = (
            "Free some space, then start the same command again: it goes on from the newest "
            "checkpoint"
        )
        try:
            with atomic.naming(self.path, advice=advice, error=MetricsError):
                yield
        except LinesError as error:
            raise MetricsError(str(error)) from error

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

    A last line that is half-written is left out; without a file there are none. Raises
    MetricsError on any other bad line.
    """
    records = []
    try:
        for where, record in read_lines(path) if Path(path).exists() else ():
            if not all(name in record for name in _RESERVED) or type(record["step"]) is not int:
                raise MetricsError(
                    f"{where}: not a record of metrics: {str(record)[:80]}; remove it to continue "
                    "without it"
                )
            records.append({name: _value(name, value) for name, value in record.items()})
    except LinesError as error:
        raise MetricsError(str(error)) from error
    return records


def _value(name: str, stored: Any) -> Any:
    return float(stored) if stored in _NON_FINITE and name not in _RESERVED else stored


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` as JSON has it, without NaN and infinities: they become strings."""
    return {
        name: value if name in _RESERVED or math.isfinite(value) else json.dumps(value)
        for name, value in record.items()
    }


def _number(name: str, value: Any) -> int | float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, numbers.Real):
        raise TypeError(f"value {name!r}: expected a number, got {type(value).__name__}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)
