"""When the loop asks for batches, and what it keeps of them."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from rvllm_jax.training import loop
from rvllm_jax.training.host_flags import flag_exchange
from rvllm_jax.training.loop import Trainer
from rvllm_jax.training.stages import StageSetup
from rvllm_jax.training.state import Position, StageArrays
from rvllm_jax.types import Batch

STEPS = 5


class Batches:
    """A stream that notes what happens to it."""

    def __init__(self, events, frames, make):
        self.events, self.frames, self.make, self.number = events, frames, make, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == STEPS:
            raise StopIteration
        gc.collect()
        alive = sum(frames() is not None for frames in self.frames)
        self.events.append(("batch", self.number, alive))
        batch = self.make(seed=self.number)
        self.frames.append(weakref.ref(batch.frames))
        self.number += 1
        return batch

    def close(self):
        self.events.append(("closed",))


@pytest.fixture
def trainer(tiny_batch, monkeypatch):
    """A trainer whose parts only note that they are called."""
    events, frames = [], []
    stream = Batches(events, frames, tiny_batch)
    monkeypatch.setattr(loop, "train_batches", lambda *_, **__: stream)

    def step(state, placed: Batch):
        events.append(("step", state))
        return state + 1, state

    def record(setup, position, bar, flags, metrics, *, behind):
        assert isinstance(flags.examples, np.ndarray) and isinstance(flags.errors, np.ndarray)
        events.append(("waits for step", metrics))

    def put(batch):
        events.append(("put", stream.number - 1))
        return batch

    data = SimpleNamespace(workers=0)
    return SimpleNamespace(
        **dict(events=events, _exit_if_asked=lambda: None, _record=record),
        recipe=SimpleNamespace(seed=0, data=data),
        train_sets={"video": None},
        layout=SimpleNamespace(put=put, share=(0, 1)),
        interrupt=SimpleNamespace(requested=False),
        flags=flag_exchange(None),
        _compile=lambda *_: step,
        _due=lambda *_: set(),
    )


@contextlib.contextmanager
def updates(trainer):
    stage = SimpleNamespace(name="joint", input="video", batch=8)
    setup, arrays = StageSetup(stage, {}, None, STEPS), StageArrays(0, {})
    yield lambda: Trainer._updates(trainer, setup, arrays, Position())


def test_the_next_batch_is_put_on_the_device_before_anything_waits_for_the_step(trainer):
    with updates(trainer) as run:
        run()
    order = [event[:2] for event in trainer.events]
    for number in range(STEPS - 1):
        waits = ("waits for step", number)
        waited = order.index(waits) if waits in order else len(order)
        assert order.index(("step", number)) < order.index(("put", number + 1)) < waited


def test_frames_are_let_go_of_and_the_stream_is_closed(trainer):
    with updates(trainer) as run:
        run()
    assert [alive for kind, *_, alive in trainer.events[:-1] if kind == "batch"] == [0, 1, 1, 1, 1]
    assert trainer.events.count(("closed",)) == 1


def test_the_stream_is_closed_when_an_update_fails(trainer):
    def fail(*_):
        raise RuntimeError("on purpose")

    trainer._compile = lambda *_: fail
    with updates(trainer) as run, pytest.raises(RuntimeError, match="on purpose"):
        run()
    assert trainer.events[-1] == ("closed",)
