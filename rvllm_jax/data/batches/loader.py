"""Examples and stored frames in, batches out: the Grain graph.

The position in the data is one number. A stage is a stream of sequences, epoch after epoch, each
epoch padded with empty ones to whole batches; global batch k is sequences [kB, (k + 1)B) of it, and
each host takes a contiguous block. What a sequence holds is a pure function of (seed, epoch, its
number), so a run goes on at any k with another number of hosts or worker processes.
"""

import functools
import multiprocessing.util
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from rvllm_jax.data.batches import packing
from rvllm_jax.data.batches.clips import View
from rvllm_jax.data.batches.dataset import READABLE, Dataset, DatasetError
from rvllm_jax.data.batches.memory import BatchMemory
from rvllm_jax.system import random
from rvllm_jax.system.malloc import keep_freed_memory
from rvllm_jax.system.pool import end_with_parent
from rvllm_jax.types import Batch, Questions

_LARGE = 1 << 20  # bytes of a batch's frames from which they are worth a memory of their own
_IN_MEMORY = np.zeros(0, np.uint8)  # stands for the frames of a sequence that lie there
_AHEAD = 4  # sequences a process works ahead: two of its thread, one at and one in the pipe


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

    Give `epochs`, or the total number of `steps` (as many epochs as that takes). batch: sequences
    of the global batch. Batch k is the same for any start_step and workers, and the hosts' parts
    joined are the same for any number of hosts. Workers need absl flags to be parsed, which
    happens here where a program has not done it, and their `if __name__ == "__main__"` guard.
    """
    if (epochs is None) == (steps is None):
        raise DatasetError("train_batches: give either epochs or steps")
    steps = dataset.num_steps(epochs, batch) if steps is None else steps
    positions = _Positions(len(dataset.sequences), batch, steps, seed, host, hosts)
    load = functools.partial(_load_sequence, dataset.reopened(), seed)
    return _graph(dataset, positions, load, start_step, workers)


def loss_batches(dataset: Dataset, *, batch: int, host: int = 0, hosts: int = 1) -> Iterator[Batch]:
    """One epoch in order with centred clips, for a loss on held-out data."""
    steps = dataset.steps_per_epoch(batch)
    positions = _Positions(len(dataset.sequences), batch, steps, None, host, hosts)
    load = functools.partial(_load_sequence, dataset.reopened(), None)
    return _graph(dataset, positions, load)


class QuestionSet(NamedTuple):
    """A video, one view of it, and questions asked about it together; video -1: nothing."""

    video: int
    questions: Sequence[int]  # their numbers in the dataset
    view: View | None = None  # one of the video's test views; None: the centred clip


def question_batches(
    dataset: Dataset,
    sets: Sequence[QuestionSet],
    *,
    batch: int,
    max_questions: int,
    permute_seed: int | None = None,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Questions]:
    """The sets in order, `batch` of them at a time over all hosts, Q = `max_questions`.

    permute_seed: shuffles the frames of each clip, by this seed. P is the longest prefix, Lq the
    longest question. Questions whose clip cannot be read are not asked: their numbers never come.
    """
    positions = _Positions(len(sets), batch, -(-len(sets) // batch), None, host, hosts)
    load = functools.partial(_load_questions, dataset.reopened(), sets, max_questions, permute_seed)
    return _graph(dataset, positions, load)


class _Positions:
    """A host's part of a stage, in order: (batch, place in this host's block, epoch, number).

    number: of the sequence or question set, in 0 <= number < count; -1 where an epoch is padded.
    """

    def __init__(self, count: int, batch: int, steps: int, seed: int | None, host: int, hosts: int):
        if batch < 1 or batch % hosts:
            raise DatasetError(f"batch {batch}: expected a multiple of the {hosts} hosts")
        self.count, self.batch, self.steps, self.seed = count, batch, steps, seed
        self.block, self.first = batch // hosts, host * (batch // hosts)

    def __len__(self) -> int:
        return self.steps * self.block

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        step, place = divmod(int(index), self.block)
        epoch, of_epoch = divmod(step, -(-self.count // self.batch))
        number = of_epoch * self.batch + self.first + place
        if number >= self.count:
            number = -1
        elif self.seed is not None:
            number = int(packing.epoch_order(self.count, self.seed, epoch)[number])
        return step, place, epoch, number


def _load_sequence(dataset: Dataset, seed: int | None, epoch: int, number: int, out) -> Batch:
    if number < 0:
        return dataset.load(-1, (), None, out)
    rng = None if seed is None else random.clip(seed, epoch, number)
    return dataset.load(*dataset.sequences[number], rng, out)


def _load_questions(
    dataset: Dataset, sets, max_questions: int, permute_seed, epoch: int, number: int, out
) -> Questions:
    video, numbers, view = sets[number] if number >= 0 else QuestionSet(-1, ())
    sequence = dataset.load(video, (), None, out, view=view)
    frames, frame_mask = sequence.frames, sequence.frame_mask
    tokens = np.zeros((max_questions, dataset.question_length), np.int32)
    mask, ids = np.zeros(tokens.shape, bool), np.full(max_questions, -1, np.int32)
    if sequence.errors == READABLE:
        for place, question in enumerate(numbers):
            asked = dataset.question_ids(question)
            tokens[place, : len(asked)], mask[place, : len(asked)] = asked, True
            ids[place] = question
    if permute_seed is not None and frame_mask.any():
        rng = random.shuffled_frames(permute_seed, video)
        order = np.arange(len(frames))
        order[frame_mask] = rng.permutation(order[frame_mask])
        frames[:] = frames[order]
    fields = ("tokens", "slots", "positions", "segments")
    prefix = [getattr(sequence, field)[: dataset.prefix_length] for field in fields]
    count = np.int32(1 if view is None else view.count)
    return Questions(frames, frame_mask, *prefix, tokens, mask, ids, count)


def _load_into(
    memory: BatchMemory | None, load: Callable, position: tuple[int, int, int, int]
) -> Batch | Questions:
    """Loads what stands at a position; its frames go to their place in the batches' memory."""
    step, place, epoch, number = position
    if memory is None:
        return load(epoch, number, None)
    return load(epoch, number, memory.place(step, place))._replace(frames=_IN_MEMORY)


class _Batches(Iterator):
    """Puts what is loaded together to batches, which are the caller's to keep; `close` ends the
    processes."""

    def __init__(self, loaded: Iterator, block: int, step: int, memory: BatchMemory | None):
        self._loaded, self._block, self._step, self._memory = loaded, block, step, memory
        # At the interpreter's end: before Grain (1) waits for workers that wait for memory.
        self._ends = multiprocessing.util.Finalize(self, _end, (loaded, memory), exitpriority=2)

    def __next__(self) -> Batch | Questions:
        loaded = [next(self._loaded) for _ in range(self._block)]
        fields = dict(zip(loaded[0]._fields, zip(*loaded, strict=True), strict=True))
        if self._memory is not None:
            del fields["frames"]
        batch = {name: np.stack(values) for name, values in fields.items()}
        if self._memory is not None:
            batch["frames"] = self._memory.take(self._step)
        self._step += 1
        return type(loaded[0])(**batch)

    def close(self) -> None:
        """Ends the processes that read; batches that were taken stay."""
        self._ends()


def _end(loaded: Iterator, memory: BatchMemory | None) -> None:
    if memory is not None:
        memory.close()
    loaded.close()


def _start_worker(worker: int, workers: int) -> None:
    """A scheduler signals all processes of a job; these serve until the main one has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    keep_freed_memory()


def _graph(
    dataset: Dataset, positions: _Positions, load: Callable, start_step: int = 0, workers: int = 0
) -> _Batches:
    """load: (epoch, number, where the frames go) -> Batch or Questions without dimension B."""
    memory, shape = None, dataset.options.clip_shape
    if positions.block * int(np.prod(shape)) >= _LARGE and start_step < positions.steps:
        keep_freed_memory()
        ahead = _AHEAD * max(workers, 1)
        memory = BatchMemory(positions.block, shape, start_step, ahead=ahead, shared=workers > 0)
    data = grain.MapDataset.source(positions)[start_step * positions.block :]
    # One reading thread a process: a clip is read while the last one is used.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    data = data.map(functools.partial(_load_into, memory, load)).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Tokens are few: they go through a pipe, nothing through Grain's own shared memory.
        options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        data = grain.experimental.WithOptionsIterDataset(data, options)
        options = grain.MultiprocessingOptions(num_workers=workers)
        data = data.mp_prefetch(options, worker_init_fn=_start_worker)
    return _Batches(iter(data), positions.block, start_step, memory)
