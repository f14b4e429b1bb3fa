"""Several question-answer segments behind one prefix: a sequence, and which segments it holds.

Which segments share a sequence depends on their lengths alone; an epoch is a permutation of the
sequences. So every segment is used once an epoch, and epochs have the same number of sequences.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rvllm_jax.system import random
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX


class PackingError(RvllmError, ValueError):
    """A prompt that does not fit the context; names the example, the lengths and the key."""


class ContextError(PackingError):
    """Prompts that pass the context; `faults` has the longest of each stage.input: its tokens, and
    what it is."""

    def __init__(self, context: int, faults: Mapping[str, tuple[int, str]]):
        self.context, self.faults = context, faults
        longest, _ = max(faults.values())
        what = "; ".join(what for _, what in faults.values())
        super().__init__(f"{what} config.data.context = {context}: raise it to {longest} or more")


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What stands before the questions: int32[P] tokens and int32[P] slots, as in types.Batch."""

    tokens: np.ndarray
    slots: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def prefix(
    before: Sequence[int],
    after: Sequence[int],
    *,
    visual: np.ndarray | None = None,
    text: Sequence[int] | None = None,
) -> Prefix:
    """The prefix around a video or around the text in its place; give one of the two.

    visual: int32[n], the visual tokens that the clip fills (`VisualLayout.filled`).
    text: the ids of a caption.
    """
    if (visual is None) == (text is None):
        raise ValueError("prefix: expected either visual or text, got both or neither")
    middle = np.zeros(len(visual), np.int32) if text is None else np.asarray(text, np.int32)
    tokens = np.concatenate([np.asarray(before, np.int32), middle, np.asarray(after, np.int32)])
    slots = np.full(len(tokens), NO_SLOT, np.int32)
    if visual is not None:
        slots[len(before) : len(before) + len(visual)] = visual
    return Prefix(tokens.astype(np.int32), slots)


def empty_sequence(context: int) -> dict[str, np.ndarray]:
    """The token fields of types.Batch for a sequence without content, each [context]."""
    return {
        "tokens": np.zeros(context, np.int32),
        "slots": np.full(context, NO_SLOT, np.int32),
        "positions": np.zeros(context, np.int32),
        "segments": np.full(context, PADDING, np.int32),
        "targets": np.zeros(context, np.int32),
        "weights": np.zeros(context, np.float32),
    }


def pack_sequence(
    head: Prefix, segments: Iterable[tuple[np.ndarray, np.ndarray]], context: int
) -> dict[str, np.ndarray]:
    """The token fields of one sequence of types.Batch, each [context]: the prefix, the segments.

    segments: (ids int[n], weights [n]) each, a weight 1 where the id itself is to be learned.
    Each segment's positions go on from the prefix's end, as if it were the only one.
    Raises PackingError if they pass the context.
    """
    sequence, length = empty_sequence(context), len(head)
    segments = list(segments)
    total = length + sum(len(ids) for ids, _ in segments)
    if total > context:
        raise PackingError(
            f"a sequence of {total} tokens passes config.data.context = {context}: raise it"
        )
    sequence["tokens"][:length] = head.tokens
    sequence["slots"][:length] = head.slots
    sequence["positions"][:length] = np.arange(length)
    sequence["segments"][:length] = PREFIX
    start = length
    for number, (ids, weights) in enumerate(segments, 1):
        end = start + len(ids)
        sequence["tokens"][start:end] = ids
        sequence["positions"][start:end] = length + np.arange(len(ids))
        sequence["segments"][start:end] = number
        # The last token of a segment has nothing to predict, the prefix's last no one successor.
        sequence["targets"][start : end - 1] = ids[1:]
        sequence["weights"][start : end - 1] = weights[1:]
        start = end
    return sequence


class Ragged:
    """Sequences of ids with their loss weights, in two flat arrays: quick to send to a worker.

    sequences: (ids, weights) each, of one length; element i is (int32[n], float32[n]).
    """

    def __init__(self, sequences: Sequence[tuple[Sequence[int], Sequence[float]]]):
        self.lengths = np.asarray([len(ids) for ids, _ in sequences], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        count, flat = int(self._starts[-1]), itertools.chain.from_iterable
        self._ids = np.fromiter(flat(ids for ids, _ in sequences), np.int32, count)
        self._weights = np.fromiter(flat(weights for _, weights in sequences), np.float32, count)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self._starts[number], self._starts[number + 1])
        return self._ids[part], self._weights[part]


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Those of an epoch: number i holds `segments[starts[i]:starts[i + 1]]` of video `videos[i]`.

    Segments are counted within their video. int32[n], int64[n + 1], int32[number of segments].
    """

    videos: np.ndarray
    starts: np.ndarray
    segments: np.ndarray

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        """The video and the segments of one sequence; raises IndexError past the last."""
        part = slice(self.starts[number], self.starts[number + 1])
        return int(self.videos[number]), self.segments[part]


def plan_sequences(
    lengths: Sequence[np.ndarray], budgets: np.ndarray | Sequence[int], max_segments: int
) -> Sequences:
    """Groups each video's segments into sequences, by first fit in order.

    lengths: int[n] a video, the tokens of its segments; budgets: int[videos], the tokens that are
    left behind the video's prefix. Every segment is in exactly one sequence.
    Raises PackingError for a segment longer than its budget.
    """
    if max_segments < 1:
        raise PackingError(f"config.data.questions={max_segments}: expected at least 1")
    videos: list[int] = []
    members: list[list[int]] = []
    for video, (tokens, budget) in enumerate(zip(lengths, budgets, strict=True)):
        if len(tokens) and max(tokens) > budget:
            raise PackingError(
                f"video {video} has a segment of {max(tokens)} tokens, but {budget} are left "
                "behind its prefix; raise config.data.context"
            )
        sequences = _first_fit(np.asarray(tokens).tolist(), int(budget), max_segments)
        members += sequences
        videos += [video] * len(sequences)
    starts = np.cumsum([0] + [len(segments) for segments in members], dtype=np.int64)
    flat = np.fromiter(itertools.chain.from_iterable(members), np.int32, count=int(starts[-1]))
    return Sequences(np.asarray(videos, np.int32), starts, flat)


def _first_fit(lengths: list[int], budget: int, most: int) -> list[list[int]]:
    sequences: list[list[int]] = []
    room: list[int] = []
    open_from = 0  # the sequences before this one hold `most` segments
    for segment, length in enumerate(lengths):
        for number in range(open_from, len(sequences)):
            if room[number] >= length and len(sequences[number]) < most:
                break
        else:
            number = len(sequences)
            sequences.append([])
            room.append(budget)
        sequences[number].append(segment)
        room[number] -= length
        while open_from < len(sequences) and len(sequences[open_from]) == most:
            open_from += 1
    return sequences


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order int64[count] in which an epoch uses its sequences: a pure function."""
    order = random.epoch_order(seed, epoch).permutation(count)
    order.flags.writeable = False  # the cache hands out this very array
    return order
