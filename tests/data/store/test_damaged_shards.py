"""Shards and records changed at random: refused or read as they were, and nothing breaks."""

import multiprocessing
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.store import record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.video import encode

FEW = 100
MANY = pytest.param(2000, marks=pytest.mark.slow)
MEMORY, SECONDS = 4 << 30, 20  # most for all; for one shard


@pytest.fixture(scope="module", params=record.ENCODINGS)
def store(request, tmp_path_factory) -> Path:
    """The folder of a store of one shard, of noise."""
    folder = tmp_path_factory.mktemp(request.param)
    rng = np.random.default_rng(0)
    paths = {f"{number}.mp4": folder / f"{number}.mp4" for number in range(3)}
    for path in paths.values():
        encode.write(path, rng.integers(0, 256, (20, 32, 32, 3), np.uint8), fps=10)
    options = StoreOptions(short_side=None, frames_per_record=4, encoding=request.param)
    write_store(folder / "store", paths, options, shards=1)
    return folder / "store"


def changed(good: bytes, rng: np.random.Generator) -> bytes:
    """Cut, with flipped bits, noise, exchanged parts, extreme numbers, or more at the end."""
    bad, kind, noise = bytearray(good), rng.integers(7), rng.bytes(int(rng.integers(1, 200)))
    at = int(rng.integers(len(bad)))
    if kind == 0:
        del bad[at:]
    elif kind == 1:
        for place in rng.integers(len(bad), size=rng.integers(1, 9)):
            bad[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        bad[at : at + len(noise)] = noise
    elif kind == 3:  # the list of records at the end
        at = max(0, len(bad) - int(rng.integers(1, 300)))
        bad[at : at + 8] = rng.bytes(8)
    elif kind == 4:  # the header
        at = int(rng.integers(min(len(bad), 300)))
        bad[at : at + 8] = rng.bytes(8)
    elif kind == 5:
        other = int(rng.integers(len(bad)))
        bad[at : at + 3000] = good[other : other + 3000]
    else:
        bad += noise
    if rng.random() < 0.3:
        at = int(rng.integers(len(bad) + 1))
        bad[at : at + 8] = b"\xff" * 8
    return bytes(bad)


def read_changed(folder: Path, count: int, seed: int, sent) -> None:
    """In a process of its own: what breaks, ends this one."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng, store = np.random.default_rng(seed), FrameStore(folder)
    all_of = {name: np.arange(entry.num_frames) for name, entry in store.entries.items()}
    frames = {name: store.read(name, indices) for name, indices in all_of.items()}
    path = store.path("0.mp4")
    good = path.read_bytes()
    found = {"read": 0, "refused": 0}
    for _ in range(count):
        path.write_bytes(changed(good, rng))
        signal.alarm(SECONDS)
        store = FrameStore(folder)
        for name, indices in all_of.items():
            try:
                assert (store.read(name, indices) == frames[name]).all(), name
                found["read"] += 1
            except FrameStoreError:
                found["refused"] += 1
    sent.put(found)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_changed_shards_are_read_as_they_were_or_refused(store, tmp_path, count):
    folder = shutil.copytree(store, tmp_path / "store")
    context = multiprocessing.get_context("spawn")
    sent = context.SimpleQueue()
    process = context.Process(target=read_changed, args=(folder, count, 0, sent))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = sent.get()
    assert min(found.values()) > count / 2 and sum(found.values()) == 3 * count


def test_changed_jpeg_frames_are_decoded_or_refused():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (9, 14, 1), np.uint8).repeat(12, 0).repeat(12, 1).repeat(3, 2)
    good, refused = record.encode_jpeg(np.ascontiguousarray(frame)), 0
    for _ in range(2000):
        try:
            decoded = record.decode_jpeg(memoryview(changed(good, rng)), (108, 168))
            assert decoded.shape == (108, 168, 3)
        except record.RecordError:
            refused += 1
    assert refused > 500
