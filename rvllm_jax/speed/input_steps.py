"""The steps that speed/input.py times, and the limits of the machine next to them."""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import simplejpeg
from array_record.python import array_record_module

from rvllm_jax.data.annotations.example import Example, Turn
from rvllm_jax.data.batches import clips, loader
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.store import record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.data.text import prompt, tokenizer
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.system.malloc import keep_freed_memory
from rvllm_jax.types import Batch, VisualLayout

# Each of the pipeline's with all that precede it; the last one with worker processes.
PIPELINE = ("read", "decode", "crop", "batch", "to device", "to device, worker processes")
LIMITS = ("memory copy", "file read", "simplejpeg alone", "hand-written loop")
_SOME = 8  # clips whose frames the decoder alone is given
_WARM = 12  # batches until the processes run and all memory was used once


class Clips(NamedTuple):
    """The clips to read, and how many make a batch."""

    frames: int
    step: int  # stored frames from one frame of a clip to the next
    crop: int
    batch: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.crop, self.crop, 3


class Steps:
    """The steps over one store; each reads clips of random videos, starts and crops.

    count: clips a measurement. bytes: those that a clip has in each step: as stored for "read" and
    "file read", else of its frames.
    """

    def __init__(self, store: FrameStore, wanted: Clips, *, batches: int, workers: int):
        keep_freed_memory()  # for the hand-written loop too
        self._store, self._wanted, self._batches, self._workers = store, wanted, batches, workers
        self.count = wanted.batch * batches
        self._batch = np.ones((wanted.batch, *wanted.shape), np.uint8)
        self._other = self._batch.copy()
        self._rng = np.random.default_rng(0)
        self._span = (wanted.frames - 1) * wanted.step + 1
        self._sampling = clips.FrameSampling(wanted.frames, wanted.step)
        long = [name for name, entry in store.entries.items() if entry.num_frames >= self._span]
        if not long:
            raise FrameStoreError(
                f"{store.folder}: none of its {len(store.entries)} videos has the {self._span} "
                f"stored frames of a clip of {wanted.frames} at every {wanted.step}: lower --frames"
            )
        self._names = [
            n
            for n in sorted(long)
            if min(store.entries[n].height, store.entries[n].width) >= wanted.crop
        ]
        if not self._names:
            raise FrameStoreError(
                f"{store.folder}: none of its frames holds a crop of {wanted.crop} pixels: lower "
                "--crop, or prepare the videos with a larger --short_side"
            )
        self._readers: dict[Path, array_record_module.ArrayRecordReader] = {}
        read = self._records(*self._window())
        some = [self._records(*self._window()) for _ in range(_SOME)]  # of videos of several sizes
        parts = [record.unpack(data).frames for each in some for data in each.values()]
        self._some = [frame for frames in parts for frame in frames]
        self._buffer = bytearray(len(next(iter(read.values()))))
        stored = sum(map(len, read.values()))
        self.bytes = dict.fromkeys([*PIPELINE, *LIMITS], self._batch[0].nbytes)
        self.bytes |= {"read": stored, "file read": len(read) * len(self._buffer)}

    def timed(self) -> dict[str, Callable[[], float]]:
        """Each step and limit by name: measures the seconds that a clip takes."""
        alone = {
            "read": lambda place: self._records(*self._window()),
            "crop": self._clip,
            "memory copy": lambda place: np.copyto(self._other[place], self._batch[place]),
            "file read": self._file,
            "hand-written loop": self._by_hand,
        }
        if self._store.options.encoding == "jpeg":
            alone |= {"decode": self._decode, "simplejpeg alone": self._simplejpeg}
        return {name: functools.partial(self._alone, step) for name, step in alone.items()} | {
            "batch": lambda: self._pipeline(0, lambda batch: None),
            "to device": lambda: self._pipeline(0, _to_device),
            "to device, worker processes": lambda: self._pipeline(self._workers, _to_device),
        }

    def _alone(self, step: Callable[[int], object]) -> float:
        start = time.perf_counter()
        for clip in range(self.count):
            step(clip % self._wanted.batch)
        return (time.perf_counter() - start) / self.count

    def _pipeline(self, workers: int, use: Callable[[Batch], None]) -> float:
        steps = _WARM + 2 * self._batches  # not to the end: processes that end take time
        batches = loader.train_batches(
            self._dataset, seed=0, batch=self._wanted.batch, steps=steps, workers=workers
        )
        for _ in range(_WARM):
            use(next(batches))
        start = time.perf_counter()
        for batch in itertools.islice(batches, self._batches):
            use(batch)
        spent = time.perf_counter() - start
        batches.close()
        return spent / self.count

    @functools.cached_property
    def _dataset(self) -> Dataset:
        turns = (Turn("What is it?", "A video.", "form"),)
        # As often as a batch has rows: none of an epoch's batches is padded with empty ones.
        again = range(self._wanted.batch)
        asked = [Example(f"{n}#{i}", n, turns, "A video.") for n in self._names for i in again]
        template = TEMPLATES["short"]
        tokens = tokenizer.train(list(prompt.texts(template, asked)), tokenizer.MIN_VOCAB)
        layout = VisualLayout("global", self._wanted.frames)
        sizes = dict(crop=self._wanted.crop, context=layout.frames + 200)
        options = DatasetOptions(layout, self._sampling, **sizes)
        return Dataset(asked, self._store, tokens, template, options)

    def _window(self) -> tuple[str, np.ndarray]:
        name = self._names[self._rng.integers(len(self._names))]
        start = self._rng.integers(self._store.entries[name].num_frames - self._span + 1)
        return name, start + self._wanted.step * np.arange(self._wanted.frames)

    def _records(self, name: str, indices: np.ndarray) -> dict[int, bytes]:
        """The records that hold those frames, by number."""
        path, first = self._store.path(name), self._store.entries[name].first_record
        if path not in self._readers:
            options = "readahead_buffer_size:0,max_parallelism:0"  # random access
            self._readers[path] = array_record_module.ArrayRecordReader(str(path), options)
        reader = self._readers[path]
        numbers = np.unique(indices // self._store.options.frames_per_record).tolist()
        return {number: reader.read([first + number])[0] for number in numbers}

    def _decode(self, place: int) -> None:
        name, indices = self._window()
        entry, size = self._store.entries[name], self._store.options.frames_per_record
        read = self._records(name, indices)
        frames = {number: record.unpack(data).frames for number, data in read.items()}
        for index in indices.tolist():
            record.decode_jpeg(frames[index // size][index % size], (entry.height, entry.width))

    def _clip(self, place: int) -> None:
        name = self._names[self._rng.integers(len(self._names))]
        how = dict(crop=self._wanted.crop, rng=self._rng, out=self._batch[place])
        clips.load_clip(self._store, name, self._sampling, **how)

    def _by_hand(self, place: int) -> None:
        """What somebody writes who knows the records: reads, crops and copies, checks nothing."""
        name, indices = self._window()
        entry, size = self._store.entries[name], self._store.options.frames_per_record
        crop = self._wanted.crop
        y, x = self._rng.integers((entry.height - crop + 1, entry.width - crop + 1))
        frames = {}
        for number, data in self._records(name, indices).items():
            frames[number] = record.unpack(data).frames
            if self._store.options.encoding == "raw":
                pixels = np.frombuffer(frames[number][0], np.uint8)
                frames[number] = pixels.reshape(-1, entry.height, entry.width, 3)
        for to, index in enumerate(indices.tolist()):
            frame = frames[index // size][index % size]
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
        for number in range(first, first + self._wanted.frames):
            simplejpeg.decode_jpeg(self._some[number % len(self._some)])


def _to_device(batch: Batch) -> None:
    jax.block_until_ready(jax.device_put(batch))
