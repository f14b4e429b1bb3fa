"""The memory of the batches: kept while anything refers to it, then used again."""

import gc
import itertools

import jax
import numpy as np
import pytest

from rvllm_jax.data.batches.memory import BatchMemory, Closed

ROWS, SHAPE = 2, (3, 64)


def filled(memory: BatchMemory, number: int) -> np.ndarray:
    for row in range(ROWS):
        memory.place(number, row)[:] = (10 * number + row) % 256
    return memory.take(number)


def expected(number: int) -> np.ndarray:
    rows = [np.full(SHAPE, (10 * number + row) % 256, np.uint8) for row in range(ROWS)]
    return np.stack(rows)


@pytest.fixture(params=[False, True], ids=["own", "shared"])
def memory(request):
    return BatchMemory(ROWS, SHAPE, 3, ahead=2, shared=request.param)


def address(array) -> int:
    return array.__array_interface__["data"][0]


def test_batches_that_are_kept_stay_as_they_were(memory):
    kept = [filled(memory, number) for number in range(3, 20)]
    for number, batch in enumerate(kept, 3):
        np.testing.assert_array_equal(batch, expected(number))
    assert len({address(batch) for batch in kept}) == len(kept)
    kept[0][:] = 1  # theirs to change
    np.testing.assert_array_equal(kept[1], expected(4))


def test_memory_is_used_again_when_nothing_refers_to_it(memory):
    slots = {address(memory._array(slot)) for slot in range(memory._slots)}
    assert len(slots) == 5
    for number in range(3, 40):
        assert address(filled(memory, number)) in slots  # else it is a copy


@pytest.mark.parametrize("refer", [
    lambda batch: batch[1:, 0],
    lambda batch: batch.reshape(-1)[::2].view(np.int8),
    lambda batch: memoryview(batch),
    lambda batch: jax.device_put(batch),
    lambda batch: jax.device_put(batch)[:1],
])  # fmt: skip
def test_any_view_keeps_a_batch(memory, refer):
    batch = filled(memory, 3)
    view = refer(batch)
    before = np.array(view)
    del batch
    for number in range(4, 20):
        filled(memory, number)
    np.testing.assert_array_equal(np.asarray(view), before)


def test_a_device_array_on_the_cpu_is_the_memory_itself(memory):
    batch = filled(memory, 3)
    placed = jax.device_put(batch, jax.devices()[0])
    assert placed.unsafe_buffer_pointer() == address(batch)


def test_batches_outlive_the_memory_s_owner():
    memory = BatchMemory(ROWS, SHAPE, 0, ahead=0, shared=True)
    batch = filled(memory, 0)
    memory.close()
    del memory
    gc.collect()
    np.testing.assert_array_equal(batch, expected(0))


def test_the_wait_for_a_place_ends_with_the_stream(memory):
    for number in itertools.count(3):
        if number not in memory._owners[:-1]:
            break
    memory.close()
    with pytest.raises(Closed):
        memory.place(number, 0)
