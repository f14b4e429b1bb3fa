"""The progress of a stage: a bar on a terminal, elsewhere a line now and then."""

import math
import os
import sys
import time
from pathlib import Path
from typing import TextIO

import jax
import tqdm


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
        self._printed_step = initial
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
        elif self._step > self._printed_step:
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
        self._printed, self._printed_step = time.monotonic(), self._step
        if not self._shown:
            return
        step = f"{self._step}/{self._total}"
        print(f"{self._stage}  step {step}, {self._status()}", file=self._file, flush=True)

    def _status(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        done = self._step - self._initial
        left = (self._total - self._step) * seconds / done if done else math.nan
        parts = [f"loss {self._loss:.4f}", f"{done * self._batch / seconds:.1f} clips/s"]
        clock = tqdm.tqdm.format_interval(round(left)) if math.isfinite(left) else "--:--"
        parts.append(f"{clock} left")
        return ", ".join(parts + _memory())


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
