import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.training.checkpoint import Checkpoints, newest
from rvllm_jax.training.checkpoint_folder import CheckpointError


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


def state(scale=1.0):
    key = jax.random.key(int(scale))
    return {
        "params": {
            "encoder/stem/kernel": scale * jax.random.normal(key, (3, 4)),
            "decoder/embed": (scale * jnp.arange(5)).astype(jnp.bfloat16),
        },
        "optimizer": (Moments(jnp.int32(7), {"encoder/stem/kernel": jnp.ones((3, 4))}), ()),
        "empty": {},
        "key": np.asarray(jax.random.key_data(key)),
    }


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip_in_another_manager_is_bit_exact(tmp_path, asynchronous):
    saved, meta = state(), {"stage": "adamw", "k": 3, "best": 0.1}
    with_ckpt = Checkpoints(tmp_path, asynchronous=asynchronous)
    assert with_ckpt.training.latest() is None
    with_ckpt.save(5, saved, meta)
    meta["k"] = 4  # what the caller does with its dictionary afterwards is its own affair
    with_ckpt.close()
    again = Checkpoints(tmp_path)
    assert again.training.latest() == 5
    assert again.training.read_meta(5) == {"stage": "adamw", "k": 3, "best": 0.1}
    arrays, meta = again.training.restore(5, like(saved))
    assert_same(arrays, saved)
    assert meta["k"] == 3
    again.close()


def test_best_keeps_one_a_stage_also_when_a_continued_run_is_behind_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best.get("sgd") is None
    checkpoints.save_best("sgd", 10, state(1), {"val_loss": 2.0})
    checkpoints.save_best("sgd", 30, state(2), {"val_loss": 1.0})
    checkpoints.save_best("adamw", 40, state(3), {"val_loss": 0.5})
    checkpoints.close()
    again = Checkpoints(tmp_path)
    again.save_best("sgd", 20, state(4), {"val_loss": 1.5})
    again.wait()
    assert os.listdir(tmp_path / "best" / "sgd") == ["20"]
    assert again.best["sgd"].latest() == 20
    assert again.best["adamw"].latest() == 40
    assert again.best["adamw"].read_meta(40) == {"val_loss": 0.5}
    arrays, meta = again.best["sgd"].restore(20, like(state()))
    assert_same(arrays, state(4))
    assert again.best.get("language") is None
    with pytest.raises(CheckpointError, match="best/language: no complete checkpoint"):
        newest(tmp_path, "language")
    with pytest.raises(ValueError, match="plain name"):
        again.save_best("a/b", 1, state(), {})
    again.close()
    assert sorted(os.listdir(tmp_path / "best")) == ["adamw", "sgd"]


KILLED_IN_A_REMOVAL = """
import os, signal, sys
import numpy as np
from rvllm_jax.training.checkpoint import Checkpoints

def kill(event, given):
    if event == "os.remove" and os.path.isdir(f"{sys.argv[1]}/checkpoints/3"):
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints = Checkpoints(sys.argv[1], keep=2)
sys.addaudithook(kill)
for step in (1, 2, 3):
    checkpoints.save(step, {"x": np.arange(4.0)}, {})
checkpoints.close()
"""


def test_a_kill_while_an_older_checkpoint_is_removed_leaves_no_half_of_it(tmp_path):
    command = [sys.executable, "-c", KILLED_IN_A_REMOVAL, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.training.latest() == 3
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]
