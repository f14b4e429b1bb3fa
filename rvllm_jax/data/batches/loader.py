"""Examples and stored frames in, batches out: the Grain graph.

The position in the data is one number. A stage is a stream of rows, epoch after epoch, each epoch
padded with empty rows to whole batches; global batch k is rows [kB, (k + 1)B) of it and each host
takes a contiguous block. What a row holds is a pure function of (seed, epoch, row), so a run goes
on at any k with another number of hosts or worker processes.
"""

import functools
import multiprocessing.util
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from rvllm_jax.data.batches import packing
from rvllm_jax.data.batches.clips import View
from rvllm_jax.data.batches.dataset import READABLE, Dataset, PipelineError
from rvllm_jax.data.batches.memory import BatchMemory
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.system.malloc import keep_freed_memory
from rvllm_jax.system.pool import end_with_parent
from rvllm_jax.types import Batch, Questions

_CLIP, _PERMUTATION = 1, 2  # streams of random numbers; data/batches/packing.py has 0
_LARGE = 1 << 20  # bytes of a batch's frames from which they are worth a memory of their own
_IN_MEMORY = np.zeros(0, np.uint8)  # stands for the frames of a row that lie there
_AHEAD = 4  # rows a process works ahead: two of its thread, one at and one in the pipe


def train_batches(
    dataset: Dataset,
    *,
    seed: int,
    batch: int,
    epochs: int | None = None,
    steps: int | None = None,
    start_step: int = 0,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """This host's part of the global batches `start_step`, `start_step` + 1, ... of a stage.

    Give `epochs`, or the total number of `steps` (as many epochs as that takes). batch: rows of
    the global batch. Batch k is the same for any start_step and workers, and the hosts' parts
    joined are the same for any number of hosts. Workers need absl flags to be parsed, which
    happens here where a program has not done it, and their `if __name__ == "__main__"` guard.
    """
    if (epochs is None) == (steps is None):
        raise PipelineError("train_batches: give either epochs or steps")
    steps = dataset.num_steps(epochs, batch) if steps is None else steps
    source = _Rows(len(dataset.sequences), batch, steps, seed, host, hosts)
    load = functools.partial(_load_row, dataset.reopened(), seed)
    return _graph(dataset, source, load, start_step, workers)


def loss_batches(
    dataset: Dataset, *, batch: int, workers: int = 0, host: int = 0, hosts: int = 1
) -> Iterator[Batch]:
    """One epoch in order with centred clips, for a loss on held-out data."""
    source = _Rows(len(dataset.sequences), batch, dataset.steps_per_epoch(batch), None, host, hosts)
    load = functools.partial(_load_row, dataset.reopened(), None)
    return _graph(dataset, source, load, 0, workers)


def eval_batches(
    dataset: Dataset,
    *,
    batch: int,
    max_questions: int,
    permute_seed: int | None = None,
    shown: Sequence[int] | None = None,
    test_clips: bool = False,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Questions]:
    """Every question of the dataset, up to `max_questions` of a clip together, clips centred.

    test_clips: each question is asked about every one of the dataset's test clips of its video; ids
    recur, with the count of equal clips. permute_seed: shuffles the frames of each clip, by this
    seed. shown: the clip that each question is asked about, its own by default. P is the longest
    prefix, Lq the longest question.
    Questions whose clip cannot be read are not asked: their numbers never come.
    """
    views = functools.cache(lambda clip: views_of(dataset, clip) if test_clips else [None])
    rows = [
        QuestionSet(clip, numbers, view)
        for clip, numbers in dataset.question_groups(max_questions, shown)
        for view in views(clip)
    ]
    how = dict(permute_seed=permute_seed, workers=workers, host=host, hosts=hosts)
    return question_batches(dataset, rows, batch=batch, max_questions=max_questions, **how)


class QuestionSet(NamedTuple):
    """A clip and up to `max_questions` questions about it; clip -1: an empty row."""

    clip: int
    questions: Sequence[int]  # their numbers in the dataset
    view: View | None = None  # one of the clip's test clips; None: the centred one


def question_batches(
    dataset: Dataset,
    rows: Sequence[QuestionSet],
    *,
    batch: int,
    max_questions: int,
    permute_seed: int | None = None,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Questions]:
    """The rows in order, `batch` of them at a time over all hosts; otherwise as `eval_batches`."""
    source = _Rows(len(rows), batch, -(-len(rows) // batch), None, host, hosts)
    load = functools.partial(_load_questions, dataset.reopened(), rows, max_questions, permute_seed)
    return _graph(dataset, source, load, 0, workers)


def views_of(dataset: Dataset, clip: int) -> list[View | None]:
    """The test clips of clip number `clip`; [None] where its times cannot be read."""
    try:
        return dataset.views(clip)
    except FrameStoreError:
        return [None]  # loading it will say why, and leave its questions unasked


class _Rows:
    """A host's rows of a stage, in order: (batch, place in it, epoch, row).

    The row is -1 where an epoch is padded.
    """

    def __init__(self, rows: int, batch: int, steps: int, seed: int | None, host: int, hosts: int):
        if batch < 1 or batch % hosts:
            raise PipelineError(f"batch {batch}: expected a multiple of the {hosts} hosts")
        self.rows, self.batch, self.steps, self.seed = rows, batch, steps, seed
        self.block, self.first = batch // hosts, host * (batch // hosts)

    def __len__(self) -> int:
        return self.steps * self.block

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        step, place = divmod(int(index), self.block)
        epoch, of_epoch = divmod(step, -(-self.rows // self.batch))
        row = of_epoch * self.batch + self.first + place
        if row >= self.rows:
            row = -1
        elif self.seed is not None:
            row = int(packing.epoch_order(self.rows, self.seed, epoch)[row])
        return step, place, epoch, row


def _load_row(dataset: Dataset, seed: int | None, epoch: int, row: int, out) -> Batch:
    if row < 0:
        return dataset.load(-1, (), None, out)
    rng = None if seed is None else np.random.default_rng((_CLIP, seed, epoch, row))
    return dataset.load(*dataset.sequences[row], rng, out)


def _load_questions(
    dataset: Dataset, rows, max_questions: int, permute_seed, epoch: int, at: int, out
) -> Questions:
    clip, numbers, view = rows[at] if at >= 0 else QuestionSet(-1, ())
    row = dataset.load(clip, (), None, out, view=view)
    asked = np.zeros((max_questions, dataset.question_length), np.int32)
    mask, ids = np.zeros(asked.shape, bool), np.full(max_questions, -1, np.int32)
    if row.errors == READABLE:
        for place, number in enumerate(numbers):
            tokens = dataset.question(number)
            asked[place, : len(tokens)], mask[place, : len(tokens)] = tokens, True
            ids[place] = number
    frames = row.frames
    if permute_seed is not None and row.frame_mask.any():
        rng = np.random.default_rng((_PERMUTATION, permute_seed, clip))
        order = np.arange(len(frames))
        order[row.frame_mask] = rng.permutation(order[row.frame_mask])
        frames[:] = frames[order]
    head = [field[: dataset.prefix_length] for field in (row.tokens, row.slots, row.positions)]
    head.append(row.segments[: dataset.prefix_length])
    count = np.int32(1 if view is None else view.count)
    return Questions(frames, row.frame_mask, *head, asked, mask, ids, count)


class _Load:
    """Loads a row; its frames go to their place in the memory of the batches, if there is one."""

    def __init__(self, load, memory: BatchMemory | None):
        self.load, self.memory = load, memory

    def __call__(self, place: tuple[int, int, int, int]) -> Batch | Questions:
        step, number, epoch, row = place
        if self.memory is None:
            return self.load(epoch, row, None)
        return self.load(epoch, row, self.memory.place(step, number))._replace(frames=_IN_MEMORY)


class _Batches(Iterator):
    """Puts rows together to batches, which are the caller's to keep; `close` ends the processes."""

    def __init__(self, rows: Iterator, block: int, step: int, memory: BatchMemory | None):
        self._rows, self._block, self._step, self._memory = rows, block, step, memory
        # At the interpreter's end: before Grain (1) waits for workers that wait for memory.
        self._ends = multiprocessing.util.Finalize(self, _end, (rows, memory), exitpriority=2)

    def __next__(self) -> Batch | Questions:
        rows = [next(self._rows) for _ in range(self._block)]
        fields = dict(zip(rows[0]._fields, zip(*rows, strict=True), strict=True))
        if self._memory is not None:
            del fields["frames"]
        batch = {name: np.stack(values) for name, values in fields.items()}
        if self._memory is not None:
            batch["frames"] = self._memory.take(self._step)
        self._step += 1
        return type(rows[0])(**batch)

    def close(self) -> None:
        """Ends the processes that read; batches that were taken stay."""
        self._ends()


def _end(rows: Iterator, memory: BatchMemory | None) -> None:
    if memory is not None:
        memory.close()
    rows.close()


def _start_worker(worker: int, workers: int) -> None:
    """A scheduler signals all processes of a job; these serve until the main one has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    keep_freed_memory()


def _graph(dataset: Dataset, source: _Rows, load, start_step: int, workers: int) -> _Batches:
    memory = None
    if source.block * int(np.prod(dataset.frames_shape)) >= _LARGE and start_step < source.steps:
        keep_freed_memory()
        ahead = _AHEAD * max(workers, 1)
        memory = BatchMemory(
            source.block, dataset.frames_shape, start_step, ahead=ahead, shared=workers > 0
        )
    rows = grain.MapDataset.source(source)[start_step * source.block :]
    # One reading thread a process: a clip is read while the last one is used.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    data = rows.map(_Load(load, memory)).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Tokens are few: they go through a pipe, nothing through Grain's own shared memory.
        options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        data = grain.experimental.WithOptionsIterDataset(data, options)
        options = grain.MultiprocessingOptions(num_workers=workers)
        data = data.mp_prefetch(options, worker_init_fn=_start_worker)
    return _Batches(iter(data), source.block, start_step, memory)
