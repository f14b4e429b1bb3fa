"""The rate of a preparation, from files to stored frames, beside bare PyAV on the same files.

One process, in processor seconds. Bare PyAV decodes every frame and scales those that a stride
keeps; it applies no rotation and writes nothing.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter

from rvllm_jax.data.store import record, shard_writer, shards
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.video import decode
from rvllm_jax.data.video.container import VIDEO_SUFFIXES
from rvllm_jax.speed import measure, synthetic

DESCRIPTION = "files to stored frames, beside bare PyAV"
BARE, SCALED, DECODED = "PyAV: decode", "PyAV: decode, scale", "ours: decode, scale"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--videos", default="", help="a folder; rendered videos if none")
    add("--stride", type=int, default=6, help="every stride-th frame is stored")
    add("--short_side", type=int, default=256, help="pixels, of stored frames")
    measure.add_arguments(parser, rounds=3)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report. Raises FrameStoreError where there is no video."""
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(arguments.videos or folder)
        if not arguments.videos:
            synthetic.write_videos(videos, 2, length=250, height=360, width=640)
        files = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not files:
            raise FrameStoreError(f"{videos}: holds no video; name another folder by --videos")
        yield f"{len(files)} files, every {arguments.stride}-th frame, {arguments.rounds} rounds"
        steps = _steps(files, arguments.stride, arguments.short_side, Path(folder) / "store")
        timers = {name: measure.timer(step, processor=True) for name, step in steps.items()}
        rounds = list(measure.run_rounds(arguments.rounds, timers))
    table = measure.Columns(24, {"CPU s": "8.3f", f"of {SCALED}": "24.2f"})
    yield table.head
    for name in steps:
        yield table.line(name, measure.best(rounds, name), measure.ratio(rounds, SCALED, name))
    return {"files": len(files), "rounds": rounds}


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
