"""Real video files and the frame stores made of them, shared by the tests of several modules."""

import contextlib
import dataclasses
import json
import os
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rvllm_jax.data.batches.clips import FrameSampling
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text import prompt, tokenizer
from rvllm_jax.data.text.template import TEMPLATES, Template
from rvllm_jax.data.video import decode, encode
from rvllm_jax.types import Example, Turn, VisualLayout

# The frame store: videos of several sizes, some of them broken.


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> dict[str, Path]:
    """Nine videos of several lengths and sizes at 10 frames a second, and two that are broken."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    paths = {f"v{number}.mp4": folder / f"v{number}.mp4" for number in range(11)}
    for number, path in enumerate(paths.values()):
        shape = (3 + 5 * number, 16 + 2 * number, 24, 3)
        encode.write(path, rng.integers(0, 256, shape, np.uint8), fps=10)
    paths["v3.mp4"].write_bytes(rng.bytes(5000))
    paths["v8.mp4"].write_bytes(b"")
    return paths


@pytest.fixture(scope="session")
def options() -> dict:
    """Those of `stored`, for `write_store`."""
    return {"options": StoreOptions(short_side=None, frames_per_record=4), "shards": 3}


@pytest.fixture(scope="session")
def stored(videos, options, tmp_path_factory) -> Path:
    """The folder of a finished store of the videos."""
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, videos, **options)
    return folder


@pytest.fixture
def probe():
    """probe(path) -> VideoInfo, of the file's header and first frame."""

    def probe(path):
        with contextlib.closing(decode.Decoding(path)) as decoding:
            next(decoding)
            return decoding.info

    return probe


@pytest.fixture
def copy(stored, tmp_path) -> Path:
    """A store of its own to damage, with equal bytes."""
    for path in stored.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


# The dataset: examples about four videos, two of them about one, "a.mp4".


@pytest.fixture(scope="session")
def lengths() -> dict[str, int]:
    """Frames of each video; b is shorter than a clip."""
    return {"a.mp4": 30, "b.mp4": 5, "c.mp4": 20, "d.mp4": 24}


@pytest.fixture(scope="session")
def layout() -> VisualLayout:
    return VisualLayout("spatiotemporal", frames=4, grid=2)


@pytest.fixture(scope="session")
def template() -> Template:
    return TEMPLATES["short"]


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    def example(name, turns):
        made = (Turn(f"What is {i} in it?", f"Answer {name} {i}.", "form") for i in range(turns))
        return Example(name, f"{name[0]}.mp4", tuple(made), f"Caption of {name}.")

    turns = {"a": 4, "b": 3, "c": 1, "a2": 2, "d": 5}
    return [example(name, count) for name, count in turns.items()]


@pytest.fixture(scope="session")
def clips_folder(lengths, tmp_path_factory) -> Path:
    """The folder of the store of the four videos, which lie beside it."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name, length in lengths.items():
        small = rng.integers(0, 255, (length, 3, 4, 3), dtype=np.uint8)
        encode.write(folder / name, small.repeat(12, 1).repeat(12, 2), fps=10)
    paths = {name: folder / name for name in lengths}
    write_store(folder / "store", paths, StoreOptions(short_side=36, frames_per_record=4), shards=4)
    return folder / "store"


@pytest.fixture(scope="session")
def tk(template, examples):
    return tokenizer.train(list(prompt.texts(template, examples)), 400)


@pytest.fixture
def make(examples, clips_folder, tk, template, layout):
    """make(examples, store, **options) -> Dataset."""

    def make(chosen=examples, store=None, *, short="pad", long="window", **changes):
        sizes = dict(context=96, max_segments=3, crop=32) | changes
        options = DatasetOptions(layout, FrameSampling(layout.frames, 2, short, long), **sizes)
        return Dataset(chosen, store or FrameStore(clips_folder), tk, template, options)

    return make


@pytest.fixture(scope="session")
def answers(tk):
    """answers(batch) -> what each row teaches: the decoded answers, in order."""

    def answers(batch):
        for row in range(len(batch.examples)):
            for segment in range(1, batch.segments[row].max(initial=0) + 1):
                learned = (batch.segments[row] == segment) & (batch.weights[row] > 0)
                yield tk.decode(batch.targets[row][learned])

    return answers


def _session(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if status[0] == "Z" else int(status[3])


@pytest.fixture(scope="session")
def session_ends():
    """session_ends(pid) waits until no process is left of the session that `pid` led."""

    def session_ends(pid):
        deadline = time.monotonic() + 10
        while alive := [other for other in map(int, filter(str.isdigit, os.listdir("/proc")))
                        if _session(other) == pid]:  # fmt: skip
            assert time.monotonic() < deadline, f"workers outlive their parent: {alive}"
            time.sleep(0.05)

    return session_ends


# Single video files, for the tests of the decoder.

MILLISECOND = Fraction(1, 1000)


@pytest.fixture(scope="session")
def moving_bar():
    """moving_bar(count, height, width) -> uint8[count, height, width, 3]: red over grey, to the
    right."""

    def moving_bar(count=20, height=36, width=48):
        frames = np.full((count, height, width, 3), 60, np.uint8)
        for t in range(count):
            frames[t, :, 2 * t % width : 2 * t % width + 6] = (230, 30, 30)
        return frames

    return moving_bar


@pytest.fixture(scope="session")
def write_with():
    """write_with(path, frames, ...) -> path: any container and codec.

    `times` in ms makes the frame rate variable; `matrix` and `range` are PyAV's `Colorspace` and
    `ColorRange`; `aspect` is that of the pixels.
    """

    def write_with(
        path, frames, *, codec="libx264", pixels="yuv420p", times=None, matrix=None, range=None,
        aspect=None, **container,
    ):  # fmt: skip
        colours = {"dst_colorspace": matrix, "dst_color_range": range}
        with av.open(str(path), "w", **container) as out:
            stream = out.add_stream(codec, rate=8)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pixels
            if matrix is not None:
                stream.codec_context.colorspace = matrix
                stream.codec_context.color_range = range
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if times is not None:
                stream.codec_context.time_base = MILLISECOND
            for t, array in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(array).reformat(format=pixels, **colours)
                if times is not None:
                    frame.pts, frame.time_base = times[t], MILLISECOND
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return path

    return write_with


@pytest.fixture
def clip(tmp_path, moving_bar) -> Path:
    """A file of 20 frames of 36 x 48 pixels at 8 frames a second."""
    path = tmp_path / "clip.mp4"
    encode.write(path, moving_bar(), fps=8, crf=12)
    return path


# Preparations: videos in a folder, and annotations written for them.

_PREPARED = PrepareOptions(stride=2, short_side=16, encoding="raw", frames_per_record=4, interval=4)


def _write(path, shade=100, frames=6):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode.write(path, np.full((frames, 16, 32, 3), shade, np.uint8), fps=5)


@pytest.fixture
def write_grey():
    """write_grey(path, shade=100, frames=6) writes a video of one shade."""
    return _write


@pytest.fixture
def place(tmp_path):
    """Videos a, b (below a folder), c, "bad", which does not decode, and "lone" of no question."""
    for shade, name in enumerate(("a", "part/b", "c", "lone")):
        _write(tmp_path / "videos" / f"{name}.mp4", 60 * shade)
    (tmp_path / "videos" / "bad.avi").write_bytes(b"no video")
    return tmp_path


@pytest.fixture
def prepared(place):
    """prepared(rows, split=..., **changes) -> Prepared, of the videos into "out"."""

    def prepared(rows, *more, split="train", out="out", **changes):
        paths = []
        for number, content in enumerate((rows, *more)):
            paths.append(place / f"{split}-{number}.json")
            paths[-1].write_text(json.dumps(content))
        fields = {field.name for field in dataclasses.fields(PrepareOptions)} & changes.keys()
        changed = {name: changes.pop(name) for name in fields}
        options = dataclasses.replace(changes.pop("options", _PREPARED), thumbnails=2, **changed)
        given = dict(say=lambda line: None) | changes
        return prepare(place / "videos", paths, place / out, split, options, **given)

    return prepared
