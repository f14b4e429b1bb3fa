"""The rate of the input, from shards to batches on the device, beside the machine's own limits.

Every step is timed with all that precedes it, in rounds that go through all of them, so that what
else runs on the machine falls on each alike; printed are the best round of each and the medians of
the rounds' ratios.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rvllm_jax.benchmarks.input_steps import LIMITS, PIPELINE, Clips, Steps
from rvllm_jax.data import records, video
from rvllm_jax.data.frames import FrameStore, write_store

DESCRIPTION = "shards to batches on the device, each step beside the machine's own limits"
_VIDEOS, _SIDE = 4, 256  # of the rendered videos
_MB = 1e6


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


def run(arguments: argparse.Namespace) -> str:
    """The report, as text."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [arguments.store] if arguments.store else render(Path(folder), arguments)
        return "\n\n".join(measure(FrameStore(store), arguments) for store in stores)


def render(folder: Path, arguments: argparse.Namespace) -> Iterable[Path]:
    """Stores of moving textures, raw and JPEG, of twice a clip's length each."""
    rng = np.random.default_rng(0)
    paths = {f"{number}.mp4": folder / f"{number}.mp4" for number in range(_VIDEOS)}
    length = 2 * arguments.frames * arguments.step
    for path in paths.values():
        coarse = rng.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3)).repeat(16, 0).repeat(16, 1)
        scene = (coarse + rng.integers(-16, 16, coarse.shape)).clip(0, 255).astype(np.uint8)
        moves = [scene[t % _SIDE :, 2 * t % _SIDE :][:_SIDE, :_SIDE] for t in range(length)]
        video.write(path, np.stack(moves), fps=25)
    for encoding in records.ENCODINGS:
        write_store(folder / encoding, paths, short_side=_SIDE, encoding=encoding)
        yield folder / encoding


def measure(store: FrameStore, arguments: argparse.Namespace) -> str:
    """Times every step over one store; returns its table, ratios and which step binds."""
    wanted = Clips(arguments.frames, arguments.step, arguments.crop, arguments.batch)
    steps = Steps(store, wanted, batches=arguments.batches, workers=arguments.workers)
    timed = steps.timed()
    rounds = [{name: step() for name, step in timed.items()} for _ in range(arguments.rounds)]
    best = {name: min(own[name] for own in rounds) for name in timed}

    def ratio(fast: str, slow: str) -> float:
        """The rate of `slow` as a share of that of `fast`."""
        return statistics.median(own[fast] / own[slow] for own in rounds)

    lines = [
        f"{store.options.encoding}: {arguments.frames} frames of {arguments.crop} pixels, "
        f"{arguments.batch} clips a batch, {arguments.rounds} rounds of {steps.count} clips",
        f"{'':34}{'clips/s':>9}{'MB/s':>8}  ms a clip",
    ]
    previous = 0.0
    for name in [*PIPELINE, *LIMITS]:
        if name not in timed:
            continue
        size = steps.bytes[name]
        line = (
            f"{name:34}{1 / best[name]:9.1f}{size / best[name] / _MB:8.0f}{1e3 * best[name]:8.2f}"
        )
        if name in PIPELINE[:-1]:
            line += f"  (added: {1e3 * max(best[name] - previous, 0):.2f})"
            previous = best[name]
        lines.append(line)
    lines.append(f"one process / hand-written loop: {ratio('hand-written loop', 'to device'):.2f}")
    if "simplejpeg alone" in timed:
        lines.append(
            f"one process / simplejpeg alone: {ratio('simplejpeg alone', 'to device'):.2f}"
        )
    return "\n".join([*lines, _binding(best)])


def _binding(best: dict[str, float]) -> str:
    """Which step takes most of a clip's time in one process, by what it adds to those before."""
    names = [name for name in PIPELINE[:-1] if name in best]
    before = [0.0, *(best[name] for name in names)]
    added = {name: best[name] - start for name, start in zip(names, before, strict=False)}
    slowest = max(added, key=added.get)
    share = added[slowest] / best[names[-1]]
    return f"{slowest!r} binds: {share:.0%} of a clip's time in one process"
