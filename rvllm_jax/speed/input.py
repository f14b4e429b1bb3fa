"""The rate of the input, from shards to batches on the device, beside the machine's own limits.

Every step is timed with all that precedes it. Printed are each round when it is done, then the best
of each step, and the medians over the rounds of ratios, of what a step adds, and of its share.
"""

import argparse
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import numpy as np

from rvllm_jax.data.store import record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.speed import measure
from rvllm_jax.speed.input_steps import PIPELINE, Steps
from rvllm_jax.speed.synthetic import write_videos

DESCRIPTION = "shards to batches on the device, each step beside the machine's own limits"
COLUMNS = measure.Columns(34, {"clips/s": "9.1f", "MB/s": "8.0f", "ms a clip": "11.2f"})
_VIDEOS, _SIDE = 4, 256  # of the rendered videos
_MB = 1e6
_NOISE = 0.8  # a step may take this share of the time of one that is part of it, by chance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--store",
        type=measure.path,
        default="",
        help="a prepared frame store; rendered raw and JPEG ones if none",
    )
    add("--frames", type=int, default=100, help="frames a clip")
    add("--step", type=int, default=1, help="stored frames from one frame of a clip to the next")
    add("--crop", type=int, default=224, help="pixels a side")
    add("--batch", type=int, default=4, help="clips a batch")
    add("--batches", type=int, default=10, help="batches a measurement")
    add("--workers", type=int, default=2, help="processes of the last measurement")
    measure.add_arguments(parser, rounds=5)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report, a store after the other. Raises FrameStoreError."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = [arguments.store] if arguments.store else render(Path(folder), arguments)
        for number, path in enumerate(stores):
            yield from [""] * (number > 0)
            store = FrameStore(path)
            measured[store.options.encoding] = yield from time_store(store, arguments)
    return {"seconds_a_clip": measured}


def render(folder: Path, arguments: argparse.Namespace) -> Iterator[Path]:
    """Stores of moving textures, raw and JPEG, of twice a clip's length each."""
    length = 2 * arguments.frames * arguments.step
    paths = write_videos(folder / "videos", _VIDEOS, length=length, height=_SIDE, width=_SIDE)
    for encoding in record.ENCODINGS:
        write_store(folder / encoding, paths, StoreOptions(short_side=_SIDE, encoding=encoding))
        yield folder / encoding


def time_store(
    store: FrameStore, arguments: argparse.Namespace
) -> Generator[str, None, list[dict[str, float]]]:
    """Times every step over one store, a line a round; then table, ratios and which step binds.

    Returns the seconds of a clip by step, of each round.
    """
    steps = Steps(store, arguments)
    yield (
        f"{store.options.encoding}: {arguments.frames} frames of {arguments.crop} pixels, "
        f"{arguments.batch} clips a batch, {arguments.rounds} rounds of {steps.count} clips"
    )
    rounds, timers = [], steps.timers()
    for seconds in measure.run_rounds(arguments.rounds, timers):
        rounds.append(seconds)
        each = ", ".join(f"{name} {1e3 * spent:.2f}" for name, spent in seconds.items())
        yield f"round {len(rounds)}, ms a clip: {each}"
    yield from report(rounds, steps.bytes)
    return rounds


def report(rounds: measure.Rounds, size: Mapping[str, int]) -> Iterator[str]:
    """The lines of the table and what follows; rounds: seconds a clip; size: bytes of a clip."""
    steps = [name for name in PIPELINE[:-1] if name in rounds[0]]  # of one process
    seconds = np.array([[each[name] for name in steps] for each in rounds])  # [rounds, steps]
    added = np.diff(seconds, prepend=0.0).clip(0.0)  # by each step to those before
    extra = dict(zip(steps, np.median(added, axis=0), strict=True))
    yield COLUMNS.head
    for name in rounds[0]:
        best = measure.best(rounds, name)
        line = COLUMNS.line(name, 1 / best, size[name] / best / _MB, 1e3 * best)
        yield f"{line}  (added: {1e3 * extra[name]:.2f})" if name in extra else line
    for limit in ("hand-written loop", "simplejpeg alone"):
        if limit in rounds[0]:
            yield f"one process / {limit}: {measure.ratio(rounds, limit, 'to device'):.2f}"
    shares = np.median(added / added.sum(axis=1, keepdims=True), axis=0)
    yield f"{steps[shares.argmax()]!r} binds: {shares.max():.0%} of a clip's time in one process"
    noisy = int((seconds[:, 1:] < _NOISE * seconds[:, :-1]).any(axis=1).sum())
    if noisy:
        yield (
            f"noisy: in {noisy} of {len(rounds)} rounds a step took less time than one that is "
            "part of it: something else ran on this machine; measure again without it, or with "
            "more --rounds"
        )
