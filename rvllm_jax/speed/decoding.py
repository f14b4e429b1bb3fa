"""The rate of a preparation, from files to stored frames, beside bare PyAV on the same files.

One process, in rounds that go through all measurements; printed are processor seconds, the best
round of each and the medians of the rounds' ratios. Bare PyAV decodes every frame and scales those
that a stride keeps; it applies no rotation and writes nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from rvllm_jax.data.store import record, shard_writer, shards
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.video import decode, encode
from rvllm_jax.data.video.container import VIDEO_SUFFIXES

DESCRIPTION = "files to stored frames, beside bare PyAV"
BARE, SCALED, DECODED = "PyAV: decode", "PyAV: decode, scale", "ours: decode, scale"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--videos", default="", help="a folder; rendered videos if none")
    add("--stride", type=int, default=6, help="every stride-th frame is stored")
    add("--short_side", type=int, default=256, help="pixels, of stored frames")
    add("--rounds", type=int, default=3, help="measurements of each step")


def run(arguments: argparse.Namespace) -> str:
    """The report, as text."""
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(arguments.videos) if arguments.videos else _render(Path(folder) / "videos")
        files = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not files:
            raise FrameStoreError(f"{videos}: holds no video; name another folder by --videos")
        timed = _steps(files, arguments.stride, arguments.short_side, Path(folder) / "store")
        rounds = [
            {name: _seconds(step) for name, step in timed.items()} for _ in range(arguments.rounds)
        ]
    lines = [f"{len(files)} files, every {arguments.stride}-th frame, {arguments.rounds} rounds"]
    lines.append(f"{'':24}{'CPU s':>8}  of {SCALED}")
    for name in timed:
        share = statistics.median(each[SCALED] / each[name] for each in rounds)
        lines.append(f"{name:24}{min(each[name] for each in rounds):8.3f}  {share:.2f}")
    return "\n".join(lines)


def _seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _steps(
    files: list[Path], stride: int, short_side: int, folder: Path
) -> dict[str, Callable[[], None]]:
    sizes = {}
    for path in files:
        height, width, _ = next(decode.Decoding(path, short_side=short_side))[0].shape
        sizes[path] = width, height

    def bare(scale: bool) -> None:
        for path in files:
            with av.open(str(path)) as container:
                stream, reformatter = container.streams.video[0], VideoReformatter()
                stream.thread_type = "NONE"
                for number, frame in enumerate(container.decode(stream)):
                    if scale and number % stride == 0:
                        reformatter.reformat(frame, *sizes[path], format="rgb24", threads=1)

    def decoded() -> None:
        for path in files:
            for _ in decode.Decoding(path, stride=stride, short_side=short_side):
                pass

    def stored(encoding: str) -> None:
        folder.mkdir(exist_ok=True)
        options = shards.StoreOptions(stride, short_side, encoding)
        named = [(str(number), path) for number, path in enumerate(files)]
        shard_writer.write_shard(shards.Task(folder, 0, 1, named, options, ""))

    return {
        BARE: lambda: bare(False),
        SCALED: lambda: bare(True),
        DECODED: decoded,
        **{f"ours: {e} shard": lambda e=e: stored(e) for e in record.ENCODINGS},
    }


def _render(folder: Path) -> Path:
    """Two files of a moving texture, 640 x 360 pixels, ten seconds each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (45, 80, 3)).repeat(16, 0).repeat(16, 1)
    scene = (coarse + rng.integers(-16, 16, coarse.shape)).clip(0, 255).astype(np.uint8)
    for number in range(2):
        moves = [scene[t % 360 :, 2 * t % 640 :][:360, :640] for t in range(250)]
        encode.write(folder / f"{number}.mp4", np.stack(moves), fps=25)
    return folder
