"""The parts of a checkpoint that asking a model takes, also while training goes on."""

import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.training import checkpoint
from rvllm_jax.training.checkpoint import Checkpoints, read_meta, read_model
from rvllm_jax.training.checkpoint_folder import CheckpointError


def test_a_sound_checkpoint_is_read_without_a_warning(tmp_path, caplog):
    arrays = {
        "params": {"decoder/embed": jnp.arange(5, dtype=jnp.bfloat16)},
        "stats": {"encoder/norm/mean": jnp.ones(3)},
        "opt": {"moment": np.ones(3)},
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, arrays, {"position": {}})
    checkpoints.close()
    caplog.clear()
    params, stats, step = read_model(tmp_path)
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []
    assert step == 7 and params.keys() == arrays["params"].keys()
    for found, saved in ((params, arrays["params"]), (stats, arrays["stats"])):
        for path, array in saved.items():
            assert found[path].dtype == array.dtype
            np.testing.assert_array_equal(found[path], array)


def save(checkpoints, step):
    """A checkpoint whose arrays all hold `step`, in files of their own."""
    arrays = {f"a{number}": jnp.full((64, 64), step, jnp.float32) for number in range(8)}
    checkpoints.save(step, {"params": arrays, "stats": {"b": jnp.full(3, step)}}, {"step": step})


def read_whole(workdir):
    params, stats, step = read_model(workdir)
    assert len(params) == 8
    for array in (*params.values(), *stats.values()):
        np.testing.assert_array_equal(array, step)
    return step


def test_a_reader_beside_training_reads_a_whole_checkpoint(tmp_path):
    checkpoints, ended, steps = Checkpoints(tmp_path, keep=1), threading.Event(), []
    save(checkpoints, 1)
    checkpoints.wait()

    def train():
        for step in range(2, 500):
            if not ended.is_set():
                save(checkpoints, step)
        checkpoints.close()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(15):
            steps.append(read_whole(tmp_path))
            step, meta = read_meta(tmp_path)
            assert meta == {"step": step} and step >= steps[-1]
    finally:
        ended.set()
        thread.join()
    assert steps == sorted(steps) and steps[-1] > steps[0]


@pytest.mark.parametrize("times", [1, checkpoint._ATTEMPTS])
def test_a_checkpoint_that_is_removed_while_it_is_read_is_left_for_the_newest(
    tmp_path, monkeypatch, times
):
    checkpoints, read, removed = Checkpoints(tmp_path, keep=None), checkpoint._read, []
    for step in range(1, times + 2):
        save(checkpoints, step)
    checkpoints.close()

    def read_amid_removal(folder, *how, **more):
        if len(removed) < times:
            removed.append(folder)
            shutil.rmtree(folder / "arrays" / "d")
            (folder / "arrays" / "manifest.ocdbt").unlink()
            try:
                return read(folder, *how, **more)
            finally:
                shutil.rmtree(folder)
        return read(folder, *how, **more)

    monkeypatch.setattr(checkpoint, "_read", read_amid_removal)
    if times == 1:
        assert read_whole(tmp_path) == 1
    else:
        with pytest.raises(
            CheckpointError, match="10 checkpoints in a row were removed.*Try again"
        ):
            read_model(tmp_path)


def test_what_was_set_aside_is_the_newest_until_what_replaces_it_is_complete(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (4, 5):
        save(checkpoints, step)
    checkpoints.close()
    (tmp_path / ".aside_checkpoints" / "3").mkdir(parents=True)
    for step in ("4", "5"):
        (tmp_path / "checkpoints" / step).rename(tmp_path / ".aside_checkpoints" / "3" / step)
    assert read_whole(tmp_path) == 5


def test_a_damaged_checkpoint_is_no_removed_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.close()
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "arrays" / "d")
    with pytest.raises(CheckpointError, match="1/arrays: cannot be read"):
        read_model(tmp_path)
    (tmp_path / "checkpoints" / "1" / "meta" / "metadata").unlink()
    with pytest.raises(CheckpointError, match="meta/metadata: cannot be read"):
        read_meta(tmp_path)
