"""The rate of the input, from shards to batches on the device, beside the machine's own limits.

Every step is timed with all that precedes it, in rounds that go through all of them, so that what
else runs on the machine falls on each alike; printed are each round when it is done, then the best
of each step, and the medians of the rounds' ratios, of what a step adds, and of its share of all.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rvllm_jax.data.store import record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import encode
from rvllm_jax.speed import figures
from rvllm_jax.speed.input_steps import LIMITS, PIPELINE, Clips, Steps

DESCRIPTION = "shards to batches on the device, each step beside the machine's own limits"
_VIDEOS, _SIDE = 4, 256  # of the rendered videos
_MB = 1e6
_NOISE = 0.8  # a step may take this share of the time of one that is part of it, by chance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--store", default="", help="a prepared frame store; rendered raw and JPEG ones if none")
    add("--frames", type=int, default=100, help="frames a clip")
    add("--step", type=int, default=1, help="stored frames from one frame of a clip to the next")
    add("--crop", type=int, default=224, help="pixels a side")
    add("--batch", type=int, default=4, help="clips a batch")
    add("--batches", type=int, default=10, help="batches a measurement")
    add("--workers", type=int, default=2, help="processes of the last measurement")
    add("--rounds", type=int, default=5, help="measurements of each step")
    figures.add_json(parser)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the report, each as soon as it is known. Raises ConfigError."""
    figures.check(arguments.json)
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = [arguments.store] if arguments.store else render(Path(folder), arguments)
        for number, store in enumerate(stores):
            yield from [""] * (number > 0)
            opened = FrameStore(store)
            measured[opened.options.encoding] = rounds = []
            yield from measure(opened, arguments, rounds)
    figures.write(arguments.json, seconds_a_clip=measured)


def render(folder: Path, arguments: argparse.Namespace) -> Iterator[Path]:
    """Stores of moving textures, raw and JPEG, of twice a clip's length each."""
    rng = np.random.default_rng(0)
    paths = {f"{number}.mp4": folder / f"{number}.mp4" for number in range(_VIDEOS)}
    length = 2 * arguments.frames * arguments.step
    for path in paths.values():
        coarse = rng.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3)).repeat(16, 0).repeat(16, 1)
        scene = (coarse + rng.integers(-16, 16, coarse.shape)).clip(0, 255).astype(np.uint8)
        moves = [scene[t % _SIDE :, 2 * t % _SIDE :][:_SIDE, :_SIDE] for t in range(length)]
        encode.write(path, np.stack(moves), fps=25)
    for encoding in record.ENCODINGS:
        write_store(folder / encoding, paths, StoreOptions(short_side=_SIDE, encoding=encoding))
        yield folder / encoding


def measure(
    store: FrameStore, arguments: argparse.Namespace, rounds: list[dict[str, float]]
) -> Iterator[str]:
    """Times every step over one store, a line a round; then table, ratios and which step binds.

    `rounds` takes the seconds of a clip by step, of each round.
    """
    wanted = Clips(arguments.frames, arguments.step, arguments.crop, arguments.batch)
    steps = Steps(store, wanted, batches=arguments.batches, workers=arguments.workers)
    yield (
        f"{store.options.encoding}: {arguments.frames} frames of {arguments.crop} pixels, "
        f"{arguments.batch} clips a batch, {arguments.rounds} rounds of {steps.count} clips"
    )
    timed = steps.timed()
    names = [name for name in (*PIPELINE, *LIMITS) if name in timed]
    for number in range(arguments.rounds):
        rounds.append({name: timed[name]() for name in names})
        each = ", ".join(f"{name} {1e3 * rounds[-1][name]:.2f}" for name in names)
        yield f"round {number + 1}, ms a clip: {each}"
    yield from report(rounds, steps.bytes)


def report(rounds: Sequence[Mapping[str, float]], size: Mapping[str, int]) -> Iterator[str]:
    """The lines of the table and what follows; rounds: seconds a clip; size: bytes of a clip."""
    added = _added(rounds)
    yield f"{'':34}{'clips/s':>9}{'MB/s':>8}  ms a clip"
    for name in rounds[0]:
        best = min(seconds[name] for seconds in rounds)
        line = f"{name:34}{1 / best:9.1f}{size[name] / best / _MB:8.0f}{1e3 * best:8.2f}"
        if name in added[0]:
            line += f"  (added: {1e3 * statistics.median(seconds[name] for seconds in added):.2f})"
        yield line
    for limit in ("hand-written loop", "simplejpeg alone"):
        if limit in rounds[0]:
            ratio = statistics.median(seconds[limit] / seconds["to device"] for seconds in rounds)
            yield f"one process / {limit}: {ratio:.2f}"
    yield _binding(added)
    unlike = sum(map(_is_noisy, rounds))
    if unlike:
        yield (
            f"noisy: in {unlike} of {len(rounds)} rounds a step took less time than one that is "
            "part of it: something else ran on this machine; measure again without it, or with "
            "more --rounds"
        )


def _of_one_process(seconds: Mapping[str, float]) -> list[str]:
    return [name for name in PIPELINE[:-1] if name in seconds]


def _added(rounds: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What each step of one process adds to those before, in seconds, by round."""
    names = _of_one_process(rounds[0])
    return [
        {
            name: max(seconds[name] - (seconds[before] if before else 0.0), 0.0)
            for before, name in zip(["", *names], names, strict=False)
        }
        for seconds in rounds
    ]


def _binding(added: Sequence[Mapping[str, float]]) -> str:
    """Which step takes most of a clip's time in one process, by the median of its shares."""
    share = {
        name: statistics.median(seconds[name] / sum(seconds.values()) for seconds in added)
        for name in added[0]
    }
    slowest = max(share, key=share.get)
    return f"{slowest!r} binds: {share[slowest]:.0%} of a clip's time in one process"


def _is_noisy(seconds: Mapping[str, float]) -> bool:
    """Whether in this round a step took much less time than one that is part of it."""
    names = _of_one_process(seconds)
    return any(seconds[b] < _NOISE * seconds[a] for a, b in zip(names, names[1:], strict=False))
