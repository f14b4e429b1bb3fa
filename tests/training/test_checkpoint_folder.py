import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.training.checkpoint import Checkpoints
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


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_keeps_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(step), {})
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def test_a_save_does_not_see_what_is_donated_after_it(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(jnp.zeros(4_000_000))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": x}, {})
    for _ in range(5):
        x = step(x)
    arrays, _ = checkpoints.training.restore(1, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
    assert np.unique(np.asarray(arrays["x"])).tolist() == [1.0]
    checkpoints.close()


def test_saving_a_step_again_replaces_it_and_the_later_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"run": "first"})
    checkpoints.save(2, state(9), {"run": "second"})
    assert checkpoints.training.latest() == 2
    arrays, meta = checkpoints.training.restore(2, like(state()))
    assert_same(arrays, state(9))
    assert meta == {"run": "second"}
    checkpoints.close()
    assert set(os.listdir(tmp_path)) <= {"checkpoints", "frozen"}
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


def test_restores_onto_another_sharding(tmp_path):
    x = jnp.arange(32.0).reshape(8, 4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": x}, {})
    devices = jax.devices()
    count = max(n for n in (1, 2, 4, 8) if n <= len(devices))
    mesh = jax.sharding.Mesh(np.array(devices[:count]), ("fsdp",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    arrays, _ = checkpoints.training.restore(1, {"x": shape})
    assert arrays["x"].sharding == sharding
    np.testing.assert_array_equal(arrays["x"], x)
    checkpoints.close()


def test_restore_refuses_a_tree_that_is_not_the_saved_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    saved = {"p": {"a/b": jnp.ones(3), "c": jnp.ones(2), "d": jnp.ones(2), "same": jnp.ones(1)}}
    checkpoints.save(1, saved, {})
    other = {
        "p": {
            "c": jnp.ones(4),
            "d": jnp.ones(2, jnp.bfloat16),
            "new": jnp.ones(5, jnp.int32),
            "same": jnp.ones(1),
        }
    }
    with pytest.raises(CheckpointError) as error:
        checkpoints.training.restore(1, like(other))
    text = str(error.value)
    assert "missing: p/new int32[5]" in text
    assert "surplus: p/a/b float32[3]" in text
    assert "different: p/c is float32[2], expected float32[4]" in text
    assert "different: p/d is float32[2], expected bfloat16[2]" in text
    assert "same" not in text
    assert "--workdir" in text
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2; there are \[1\]"):
        checkpoints.training.restore(2, like(saved))
    checkpoints.close()


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1), {})
    checkpoints.save(2, state(2), {})
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "2" / "arrays").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"")
    again = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoints/2: cannot be read.*Delete this folder"):
        again.training.restore(2, like(state()))
    assert_same(again.training.restore(1, like(state()))[0], state(1))
    again.close()


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, "at least one array"),
        ({"x": 1.0}, "x: expected an array, got float"),
        ({"p": {"x": jnp.zeros((0, 2))}}, "p/x: an array without elements"),
        ({"key": jax.random.key(0)}, "key: a typed PRNG key"),
        ({"a": {"b/c": jnp.ones(1)}, "a/b": {"c": jnp.ones(1)}}, "several arrays are named"),
    ],
)
def test_leaves_that_cannot_be_saved_are_refused_before_anything_is_written(
    tmp_path, arrays, message
):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=message):
        checkpoints.save(1, arrays, {})
    checkpoints.close()
    assert files(tmp_path) == []


KILLED = """
    import sys, time
    import jax.numpy as jnp, numpy as np
    from rvllm_jax.training.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=1)
    small = {"x": jnp.arange(4.0)}
    checkpoints.save(1, small, {"k": 1})
    checkpoints.wait()
    rng = np.random.default_rng(0)
    large = {f"x{i}": jnp.asarray(rng.standard_normal(2_000_000), jnp.float32) for i in range(24)}
    print("saving", flush=True)
    checkpoints.save(int(sys.argv[2]), large, {"k": 2})
    print("saved", flush=True)
    checkpoints.wait()
    print("done", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("step, cleared", [(2, "2."), (1, ".aside")])
def test_killed_while_saving_the_previous_checkpoint_stays(tmp_path, step, cleared):
    # step 2: an ordinary save; step 1: one that replaces the checkpoint there is.
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(step)]
    folder = tmp_path / "checkpoints"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "saving\n"
        deadline = time.monotonic() + 60
        while not _bytes_of_half_written(folder) > 1_000_000:
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        assert "done" not in child.stdout.read()
    left = os.listdir(folder) + os.listdir(tmp_path)
    assert any(name.startswith(cleared) for name in left), left
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.training.latest() == 1
    arrays, meta = checkpoints.training.restore(1, {"x": jax.ShapeDtypeStruct((4,), jnp.float32)})
    assert arrays["x"].tolist() == [0, 1, 2, 3]
    assert meta == {"k": 1}
    checkpoints.save(2, state(), {})
    checkpoints.close()
    assert os.listdir(folder) == ["2"]
    assert set(os.listdir(tmp_path)) <= {"checkpoints", "frozen"}


def _bytes_of_half_written(folder):
    total = 0
    for path in folder.glob("*tmp*/**/*") if folder.exists() else ():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass  # renamed between the listing and here
    return total


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of the options given, so that the disk that is full is a real one."""
    mounted = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("a full disk needs the command `mount`")
        if done.returncode:
            pytest.skip(f"a full disk needs the right to mount one: {done.stderr.strip()}")
        mounted.append(tmp_path)
        return tmp_path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_too_little_space_is_noticed_before_the_save(small_disk):
    workdir = small_disk("size=2m")
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, state(), {})
    checkpoints.wait()
    before = files(workdir)
    with pytest.raises(CheckpointError) as error:
        checkpoints.save(2, {"x": jnp.ones(1_000_000)}, {})
    assert "needs 4,262,144 bytes" in str(error.value)
    assert str(workdir / "checkpoints") in str(error.value)
    assert "Free space" in str(error.value)
    assert files(workdir) == before
    assert_same(checkpoints.training.restore(1, like(state()))[0], state())
    checkpoints.close()


def test_a_disk_that_says_that_it_is_full_is_believed(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(), {})
    checkpoints.wait()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match="no space .* step 2: .* 1,000 are free. Free space"):
        checkpoints.save(2, state(), {})
    assert checkpoints.training.latest() == 1
    checkpoints.close()


def test_space_that_runs_out_during_the_save_is_reported(small_disk):
    # The bytes suffice, but the file system runs out of files: ENOSPC comes in the middle.
    workdir = small_disk("size=64m,nr_inodes=40")
    checkpoints = Checkpoints(workdir, keep=2)
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="no space left.*Free space"):
        for step in (2, 3, 4):
            checkpoints.save(step, state(step), {})
            checkpoints.wait()
    newest = checkpoints.training.latest()
    assert newest in (1, 2)
    complete = [name for name in os.listdir(workdir / "checkpoints") if name.isdigit()]
    assert sorted(complete) == [str(step) for step in range(1, newest + 1)]
    for step in range(1, newest + 1):
        assert_same(checkpoints.training.restore(step, like(state()))[0], state(step))
    checkpoints.close()
    # Opening clears the rest away; threads of the failed save may go on writing it for a while.
    deadline = time.monotonic() + 20
    while sorted(os.listdir(workdir / "checkpoints")) != sorted(complete):
        assert time.monotonic() < deadline, os.listdir(workdir / "checkpoints")
        with contextlib.suppress(OSError):  # a folder that fills again while it is removed
            Checkpoints(workdir).close()


def test_meta_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, state(), {"loss": jnp.ones(1)})
    checkpoints.close()
    assert files(tmp_path) == []
