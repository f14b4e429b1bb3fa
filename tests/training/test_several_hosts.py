"""The real command on several hosts, which are processes on loopback with eight devices in all."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rvllm_jax.experiments.experiment import Experiment
from rvllm_jax.experiments.train import run
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.training import metrics
from rvllm_jax.training.checkpoint import read_model
from rvllm_jax.training.sigterm import INTERRUPTED
from rvllm_jax.weights.hf_config import llama_values

ROOT = Path(__file__).parents[2]
NAME = socket.gethostname()
STEPS = 3  # of each stage
STAGE = dict(steps=STEPS, batch=8, warmup=1)
OWN = {f"stages.{s}.{k}": v for s in ("visual", "joint") for k, v in STAGE.items()}
OWN |= {"schedule": "visual,joint", "evaluation.every": STEPS, "model.dtype": "float64"}
OWN |= {"evaluation.max_new": 2}
SHORT = {"schedule": "visual", "stages__visual__steps": 2}
# In float64, of a norm or a number: a sum over processes is not taken in the order of one inside a
# process, and AdamW makes updates out of gradients however small.
TOLERANCE = 1e-8


@pytest.fixture(scope="module")
def store(workplace, recipe, tmp_path_factory):
    """A folder of stores in which the frames of the video 2.mp4 are damaged; and of a decoder whose
    heads divide by eight, as do all of a mesh's devices."""
    where = tmp_path_factory.mktemp("damaged")
    (where / "decoder").mkdir()
    sizes = dataclasses.replace(DECODERS["tiny"], heads=8, kv_heads=8, head_dim=16)
    (where / "decoder" / "config.json").write_text(json.dumps(llama_values(sizes, "float32")))
    store = Experiment.open(recipe(data__store=str(where)), where / "w").source.store
    path, frame = store.path("2.mp4"), store.read("2.mp4", np.array([0]))[0]
    content = bytearray(path.read_bytes())
    content[content.index(frame.tobytes()[:64])] ^= 1
    path.write_bytes(content)
    return where


@pytest.fixture(scope="module")
def start(workplace, settings, store, process_groups):
    """start(workdir, hosts, *numbers, **keys) -> the processes of these hosts (of all of them)."""

    def start(workdir: Path, hosts: int, *numbers: int, flags=(), **changes):
        values = (
            settings | OWN | {"data.store": str(store), "model.decoder": str(store / "decoder")}
        )
        values |= {key.replace("__", "."): v for key, v in changes.items()}
        command = [sys.executable, "-m", "rvllm_jax.main", "--config=configs/joint.py"]
        command += [f"--workdir={workdir}"] + [f"--config.{k}={v}" for k, v in values.items()]
        if hosts > 1:
            with socket.create_server(("", 0)) as server:
                port = server.getsockname()[1]
            command += [f"--coordinator=localhost:{port}", f"--hosts={hosts}", "--lost_after=12"]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "1",
            "JAX_NUM_CPU_DEVICES": str(8 // hosts),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(workplace / f"compiled{hosts}"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        group = []
        for host in numbers or range(hosts):
            here = [*command, *([f"--host={host}"] if hosts > 1 else []), *flags]
            with open(f"{workdir}.{host}.log", "w") as log:
                group.append(
                    subprocess.Popen(
                        here, cwd=ROOT, env=environment, stdout=log, stderr=log,
                        start_new_session=True,
                    )
                )  # fmt: skip
        process_groups.extend(group)
        return group

    return start


@pytest.fixture(scope="module")
def run_here(recipe, store, quick_compilation):
    """run_here(workdir, **keys): the same run in this process, on its eight devices."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    own = {key.replace(".", "__"): value for key, value in OWN.items()}
    own |= {"data__store": str(store), "model__decoder": str(store / "decoder")}
    yield lambda workdir, **keys: run(recipe(**own | keys), workdir)
    jax.config.update("jax_enable_x64", before)


def ended(workdir: Path, processes) -> list[str]:
    """The logs of processes that ended well."""
    codes = [process.wait(500) for process in processes]
    logs = [Path(f"{workdir}.{host}.log").read_text() for host in range(len(codes))]
    assert codes == [0] * len(codes), "\n=====\n".join(logs)
    return logs


def assert_same_run(workdir: Path, other: Path) -> None:
    """Losses and what else was recorded, parameters and statistics at the end, and accuracy."""
    records, expected = (metrics.read(w / "metrics.jsonl") for w in (workdir, other))
    for mine, theirs in zip(records, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, str):
                assert mine[name] == value
            else:
                assert mine[name] == pytest.approx(value, rel=TOLERANCE), name
    (*ours, step), (*theirs, last) = read_model(workdir), read_model(other)
    assert step == last
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.keys() == expected.keys()
        for path, x in jax.tree.map(np.asarray, expected).items():
            assert x.dtype == np.float64
            assert np.linalg.norm(mine[path] - x) <= TOLERANCE * np.linalg.norm(x), path
    results = [json.loads((w / "report" / "results.json").read_text()) for w in (workdir, other)]
    for key in ("accuracy", "counts", "unreadable_rows", "steps"):
        assert results[0][key] == results[1][key]


@pytest.mark.slow
def test_two_hosts_train_and_answer_as_one_does(workplace, start, run_here):
    workdir = workplace / "two_short"
    processes = start(workdir, 2, **SHORT)
    run_here(workplace / "one_short", **SHORT)  # at the same time
    _, other = ended(workdir, processes)
    assert_same_run(workdir, workplace / "one_short")
    # One host's rows could not be read, and the other one knows: it decides with it.
    train = [r for r in metrics.read(workdir / "metrics.jsonl") if r["kind"] == "train"]
    assert [(r["step"], r["bad_rows"]) for r in train] == [(1, 1), (2, 2)]
    assert "question type" not in other and "step 2/2" not in other  # one host writes


@pytest.fixture(scope="module")
def whole(workplace, run_here):
    """The working directory of a run of both stages by one process."""
    run_here(workplace / "one")
    return workplace / "one"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "mesh"),
    [
        (4, {}),
        (2, {"data": 1, "fsdp": 2, "tensor": 4}),
        (2, {"data": 1, "fsdp": 1, "tensor": 8}),  # both hosts hold every row
    ],
)
def test_hosts_and_meshes_give_one_run(workplace, start, whole, hosts, mesh):
    workdir = workplace / f"run{hosts}{''.join(map(str, mesh.values()))}"
    changes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    ended(workdir, start(workdir, hosts, **changes))
    assert_same_run(workdir, whole)


def until(processes, happens) -> None:
    end = time.monotonic() + 500
    while not happens():
        assert all(p.poll() is None for p in processes) and time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_sigterm_on_one_host_makes_all_save_one_step_and_another_number_goes_on(
    workplace, start, whole
):
    workdir = workplace / "stopped"
    processes = start(workdir, 2, checkpoint__every=100)
    until(processes, lambda: "joint" in _text(workdir, 0))  # the second stage compiles
    processes[1].send_signal(signal.SIGTERM)
    assert [p.wait(200) for p in processes] == [INTERRUPTED] * 2, _text(workdir, 0)
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert STEPS <= saved[-1] <= 2 * STEPS
    if saved[-1] > STEPS:
        done = [r["step"] for r in metrics.read(workdir / "metrics.jsonl")]
        assert max(done) == saved[-1]
    ended(workdir, start(workdir, 4))
    assert_same_run(workdir, whole)


def _text(workdir: Path, host: int) -> str:
    return Path(f"{workdir}.{host}.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0])
def test_a_killed_host_ends_the_other_and_one_process_goes_on(
    workplace, start, run_here, whole, killed
):
    workdir = workplace / f"killed{killed}"
    processes = start(workdir, 2, checkpoint__every=1)
    until(processes, (workdir / "checkpoints" / "2").is_dir)
    processes[killed].kill()
    assert processes[1 - killed].wait(120) not in (0, INTERRUPTED)
    log = _text(workdir, 1 - killed)
    assert f"host {1 - killed} ({NAME}) ends, because" in log
    assert f"host {killed} ({NAME})" in log.split("ends, because")[1].splitlines()[0], log
    assert "start the same command again, on any number of hosts" in log
    run_here(workdir, checkpoint__every=100)
    assert_same_run(workdir, whole)


@pytest.mark.slow
def test_hosts_that_differ_or_do_not_come_are_named_before_anything_is_made(workplace, start):
    workdir = workplace / "differ"
    first, second = start(workdir, 2), None
    port = next(a for a in first[0].args if a.startswith("--coordinator"))
    first[1].kill()
    first[1].wait()
    with open(f"{workdir}.1.log", "w") as log:
        second = subprocess.Popen(
            [*first[1].args, port, "--config.seed=5"], cwd=ROOT, stdout=log, stderr=log
        )
    assert first[0].wait(200) == second.wait(200) == 1
    for host in (0, 1):
        said = f"config.seed: 0 on host 0 ({NAME}), 5 on host 1 ({NAME})"
        assert said in _text(workdir, host)
    assert not workdir.exists()
    (alone,) = start(workdir, 2, 0, flags=["--wait=3"])
    assert alone.wait(200) == 1 and "host 1 of 2 did not come within 3" in _text(workdir, 0)
    (alone,) = start(workdir, 2, 1, flags=["--wait=3"])
    assert alone.wait(200) == 1 and "no host 0 at localhost" in _text(workdir, 1)
    shutil.rmtree(workdir, ignore_errors=True)
