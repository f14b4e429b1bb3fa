"""The steps that speed/input.py times, and the limits of the machine next to them."""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import simplejpeg
from array_record.python import array_record_module

from rvllm_jax.data.batches import loader
from rvllm_jax.data.batches.clips import FrameSampling, load_clip
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.store import record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.speed import measure
from rvllm_jax.speed.synthetic import make_examples, train_tokenizer
from rvllm_jax.system.malloc import keep_freed_memory
from rvllm_jax.types import Batch, VisualLayout

# Each of the pipeline's with all that precede it; the last one with worker processes.
PIPELINE = ("read", "decode", "crop", "batch", "to device", "to device, worker processes")
LIMITS = ("memory copy", "file read", "simplejpeg alone", "hand-written loop")
_SOME = 8  # clips whose frames the decoder alone is given
_WARM = 12  # batches until the processes run and all memory was used once


class Steps:
    """The steps over one store; each reads clips of random videos, starts and crops.

    options: frames, step, crop, batch, batches and workers, as `bench input` has them.
    count: clips a measurement. bytes: those that a clip has in each step: as stored for "read" and
    "file read", else of its frames. Raises FrameStoreError where no video of the store will do.
    """

    def __init__(self, store: FrameStore, options: argparse.Namespace):
        keep_freed_memory()  # for the hand-written loop too
        self._store, self._options = store, options
        self.count = options.batch * options.batches
        shape = options.batch, options.frames, options.crop, options.crop, 3
        self._batch, self._other = np.ones(shape, np.uint8), np.ones(shape, np.uint8)
        self._rng = np.random.default_rng(0)
        self._sampling = FrameSampling(options.frames, options.step)
        self._span = (options.frames - 1) * options.step + 1
        self._names = self._usable_videos()
        self._readers: dict[Path, array_record_module.ArrayRecordReader] = {}
        read = self._records(*self._window())
        some = [self._frames(*self._window()) for _ in range(_SOME)]  # of videos of several sizes
        self._some = list(itertools.chain(*some))
        self._buffer = bytearray(len(next(iter(read.values()))))
        stored = sum(map(len, read.values()))
        self.bytes = dict.fromkeys([*PIPELINE, *LIMITS], self._batch[0].nbytes)
        self.bytes |= {"read": stored, "file read": len(read) * len(self._buffer)}

    def _usable_videos(self) -> list[str]:
        """The names of the videos that are as long and as large as a clip."""
        store, options = self._store, self._options
        long = [name for name, entry in store.entries.items() if entry.num_frames >= self._span]
        if not long:
            raise FrameStoreError(
                f"{store.folder}: none of its {len(store.entries)} videos has the {self._span} "
                f"stored frames of a clip of {options.frames} at every {options.step}: lower "
                "--frames"
            )
        sides = {name: min(store.entries[name].height, store.entries[name].width) for name in long}
        if max(sides.values()) < options.crop:
            raise FrameStoreError(
                f"{store.folder}: none of its frames holds a crop of {options.crop} pixels: lower "
                "--crop, or prepare the videos with a larger --short_side"
            )
        return sorted(name for name, side in sides.items() if side >= options.crop)

    def timers(self) -> dict[str, measure.Timer]:
        """Each step, then each limit, by name: measures the seconds that a clip takes."""
        alone = {
            "read": lambda place: self._records(*self._window()),
            "crop": self._clip,
            "memory copy": lambda place: np.copyto(self._other[place], self._batch[place]),
            "file read": self._file,
            "hand-written loop": self._by_hand,
        }
        if self._store.options.encoding == "jpeg":
            alone |= {"decode": self._decode, "simplejpeg alone": self._simplejpeg}
        timers = {name: functools.partial(self._alone, step) for name, step in alone.items()} | {
            "batch": lambda: self._pipeline(0, lambda batch: None),
            "to device": lambda: self._pipeline(0, _to_device),
            "to device, worker processes": lambda: self._pipeline(
                self._options.workers, _to_device
            ),
        }
        return {name: timers[name] for name in (*PIPELINE, *LIMITS) if name in timers}

    def _alone(self, step: Callable[[int], object]) -> float:
        places = [clip % self._options.batch for clip in range(self.count)]
        return measure.timer(lambda: [step(place) for place in places])() / self.count

    def _pipeline(self, workers: int, use: Callable[[Batch], None]) -> float:
        batch, number = self._options.batch, self._options.batches
        steps = _WARM + 2 * number  # not to the end: processes that end take time
        batches = loader.train_batches(
            self._dataset, seed=0, batch=batch, steps=steps, workers=workers
        )
        for _ in range(_WARM):
            use(next(batches))
        seconds = measure.timer(lambda: [use(next(batches)) for _ in range(number)])()
        batches.close()
        return seconds / self.count

    @functools.cached_property
    def _dataset(self) -> Dataset:
        # As often as a batch has clips: none of an epoch's batches is padded with empty ones.
        videos = [name for name in self._names for _ in range(self._options.batch)]
        examples, template = make_examples(videos, ["What is it?"]), TEMPLATES["short"]
        tokenizer = train_tokenizer(template, examples)
        layout = VisualLayout("global", self._options.frames)
        sizes = dict(crop=self._options.crop, context=layout.frames + 200)
        options = DatasetOptions(layout, self._sampling, **sizes)
        return Dataset(examples, self._store, tokenizer, template, options)

    def _window(self) -> tuple[str, np.ndarray]:
        """A video and the indices of a clip's frames in it."""
        name = self._names[self._rng.integers(len(self._names))]
        start = self._rng.integers(self._store.entries[name].num_frames - self._span + 1)
        return name, start + self._options.step * np.arange(self._options.frames)

    def _records(self, name: str, indices: np.ndarray) -> dict[int, bytes]:
        """The records that hold those frames, by number."""
        path, first = self._store.path(name), self._store.entries[name].first_record
        if path not in self._readers:
            options = "readahead_buffer_size:0,max_parallelism:0"  # random access
            self._readers[path] = array_record_module.ArrayRecordReader(str(path), options)
        reader = self._readers[path]
        numbers = np.unique(indices // self._store.options.frames_per_record).tolist()
        return {number: reader.read([first + number])[0] for number in numbers}

    def _frames(self, name: str, indices: np.ndarray) -> Iterator[np.ndarray | memoryview]:
        """Those frames as they are stored: uint8[h, w, 3], or JPEG files."""
        entry, size, frames = self._store.entries[name], self._store.options.frames_per_record, {}
        for number, data in self._records(name, indices).items():
            frames[number] = record.unpack(data).frames
            if self._store.options.encoding == "raw":
                pixels = np.frombuffer(frames[number][0], np.uint8)
                frames[number] = pixels.reshape(-1, entry.height, entry.width, 3)
        return (frames[index // size][index % size] for index in indices.tolist())

    def _decode(self, place: int) -> None:
        name, indices = self._window()
        entry = self._store.entries[name]
        for frame in self._frames(name, indices):
            record.decode_jpeg(frame, (entry.height, entry.width))

    def _clip(self, place: int) -> None:
        name = self._names[self._rng.integers(len(self._names))]
        out, crop = self._batch[place], self._options.crop
        load_clip(self._store, name, self._sampling, crop=crop, rng=self._rng, out=out)

    def _by_hand(self, place: int) -> None:
        """What somebody writes who knows the records: reads, crops and copies, checks nothing."""
        name, indices = self._window()
        entry, crop = self._store.entries[name], self._options.crop
        y, x = self._rng.integers((entry.height - crop + 1, entry.width - crop + 1))
        for to, frame in enumerate(self._frames(name, indices)):
            if self._store.options.encoding == "jpeg":
                frame = simplejpeg.decode_jpeg(frame)
            self._batch[place, to] = frame[y : y + crop, x : x + crop]

    def _file(self, place: int) -> None:
        """As many bytes of a shard as a clip's records have, at as many places, into one buffer."""
        name, indices = self._window()
        path = self._store.path(name)
        last = max(path.stat().st_size - len(self._buffer), 0)
        with open(path, "rb", buffering=0) as file:
            for _ in np.unique(indices // self._store.options.frames_per_record):
                file.seek(int(self._rng.integers(last + 1)))
                file.readinto(self._buffer)

    def _simplejpeg(self, place: int) -> None:
        first = int(self._rng.integers(len(self._some)))
        for number in range(first, first + self._options.frames):
            simplejpeg.decode_jpeg(self._some[number % len(self._some)])


def _to_device(batch: Batch) -> None:
    jax.block_until_ready(jax.device_put(batch))
