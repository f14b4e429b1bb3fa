"""Shards written by a Beam pipeline: the bytes of the local path, whatever fails or comes twice."""

import functools
import pickle
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rvllm_jax.data.prepare import beam
from rvllm_jax.data.store import record, shard_writer, shards, writer
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions, Task
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.system.atomic import read_json

ROOT = Path(__file__).parents[3]
DIRECT = ["--runner=DirectRunner"]


@pytest.fixture
def installed():
    pytest.importorskip(
        "apache_beam", reason="apache_beam is not installed: pip install -e .[beam]"
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def task(videos, tmp_path) -> Task:
    """The only shard of a store of two videos, not written yet."""
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "lock").touch()
    chosen = [(name, videos[name]) for name in ("v1.mp4", "v2.mp4")]
    options = StoreOptions(1, None, "raw", 4)
    return Task(folder, 0, 1, chosen, options, "mine")


@pytest.mark.parametrize("encoding", record.ENCODINGS)
def test_a_pipeline_writes_the_bytes_of_the_local_path(installed, videos, encoding, tmp_path):
    calls, own = [], {"options": StoreOptions(1, None, encoding, 4), "shards": 3}
    local = write_store(tmp_path / "local", videos, **own)
    run = beam.runner(DIRECT)
    by_beam = write_store(
        tmp_path / "beam", videos, run_tasks=run, progress=lambda *n: calls.append(n), **own
    )
    assert files(tmp_path / "beam") == files(tmp_path / "local")
    assert by_beam.entries == local.entries and by_beam.bad == local.bad
    assert local.bad.keys() == {"v3.mp4", "v8.mp4"}
    assert calls[-1] == (11, 11)
    assert {path.name for path in tmp_path.iterdir()} == {"local", "beam"}


class InOrder:
    """A pipeline of one worker and without Beam: each shard is sent to it, one comes twice."""

    def __init__(self, arguments, tasks, work):
        sent = [pickle.dumps(task) for task in [*tasks, tasks[0]]]
        random.Random(0).shuffle(sent)
        self._sent, self._step = sent, pickle.dumps(functools.partial(beam._write, work=work))

    def run(self):
        return self

    def wait_until_finish(self):
        for task in self._sent:
            pickle.loads(self._step)(pickle.loads(task))


@pytest.mark.parametrize("encoding", record.ENCODINGS)
def test_the_steps_without_beam_write_the_bytes_of_the_local_path(
    videos, encoding, tmp_path, monkeypatch
):
    """All but Beam itself, which the lock's environment lacks: what its workers do, and the end."""
    monkeypatch.setattr(beam, "_pipeline", InOrder)
    own = {"options": StoreOptions(2, None, encoding, 4), "shards": 3}
    local = write_store(tmp_path / "local", videos, **own)
    run = functools.partial(beam._run, DIRECT)
    by_steps = write_store(tmp_path / "steps", videos, run_tasks=run, **own)
    assert files(tmp_path / "steps") == files(tmp_path / "local")
    assert by_steps.entries == local.entries and by_steps.bad == local.bad
    assert local.bad.keys() == {"v3.mp4", "v8.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == {"local", "steps"}


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(installed, stored, videos, options, tmp_path):
    """As on other machines: nothing is shared with them but the folders."""
    program = f"""
from pathlib import Path
from rvllm_jax.data.prepare import beam
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
if __name__ == "__main__":
    names = {[str(path) for path in videos.values()]}
    arguments = ["--runner=DirectRunner", "--direct_running_mode=multi_processing"]
    run = beam.runner([*arguments, "--direct_num_workers=2"])
    videos = {{Path(name).name: name for name in names}}
    write_store({str(tmp_path / "frames")!r}, videos, run_tasks=run, **{options!r})
"""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "frames") == files(stored)


def test_what_is_finished_is_kept(installed, copy, stored, videos, options):
    (copy / "shard-00001-of-00003.json").unlink()
    kept = copy / "frames-videos.array_record-00002-of-00003"
    stamp = kept.stat().st_mtime_ns
    write_store(copy, videos, run_tasks=beam.runner(DIRECT), **options)
    assert files(copy) == files(stored) and kept.stat().st_mtime_ns == stamp


def test_a_video_known_to_hang_is_not_tried_again(installed, videos, options, tmp_path):
    folder = tmp_path / "frames"
    write_store(folder, videos, **options)
    names = sorted(videos)
    for path in folder.glob("shard-00000*"):
        path.unlink()
    first, *_ = writer.plan(folder, videos, **options)
    shards.write_aside(first, {names[0]: "it hung"})
    report = write_store(folder, videos, run_tasks=beam.runner(DIRECT), **options)
    assert report.bad[names[0]] == "it hung"


def test_a_pipeline_that_fails_names_the_reason(installed, task):
    (task.folder / "lock").unlink()  # as on a worker that does not mount the folder
    with pytest.raises(FrameStoreError, match=r"left 1 of 1 shards.*not seen by the worker"):
        list(beam.runner(DIRECT)([task]))
    assert files(task.folder) == {} and list(task.folder.parent.iterdir()) == [task.folder]


def test_an_attempt_that_comes_twice_leaves_one_whole_shard(task, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    attempts = [threading.Thread(target=beam._write, args=(task, work)) for _ in range(2)]
    for attempt in attempts:
        attempt.start()
    for attempt in attempts:
        attempt.join()
    own = tmp_path / "other"
    own.mkdir()
    shard_writer.write_shard(task._replace(folder=own))
    assert files(task.folder) == {**files(own), "lock": b""} and not list(work.iterdir())


@pytest.mark.parametrize("file", [shards.RECORDS, shards.TIMES])
def test_a_shard_of_which_a_file_cannot_be_moved_is_not_declared_finished(file, task, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    task.path(file).mkdir()  # where a file is to go
    with pytest.raises(IsADirectoryError):
        beam._write(task, work)
    assert not task.path(shards.DONE).exists()
    assert [path.name for path in task.folder.iterdir() if path.is_dir()] == [task.path(file).name]


def test_a_shard_of_another_preparation_is_written_anew(task, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    done = task.path(shards.DONE)
    done.write_text('{"fingerprint": "of another"}')
    beam._write(task, work)
    assert read_json(done)["fingerprint"] == "mine"


def test_a_worker_of_a_run_that_has_ended_writes_nothing(task, tmp_path):
    work = tmp_path / "frames.beam-1"
    work.mkdir()
    shutil.rmtree(work)
    with pytest.raises(FrameStoreError, match="of a run that has ended"):
        beam._write(task, work)
    assert files(task.folder) == {"lock": b""}


def test_an_address_is_refused(task):
    with pytest.raises(FrameStoreError, match="gs:/bucket.*not supported.*Mount the bucket"):
        list(beam._run(DIRECT, [task._replace(folder=Path("gs://bucket/frames"))]))
    for address in ("gs://bucket", "s3://bucket/frames", "hdfs://host/frames"):
        with pytest.raises(FrameStoreError, match=f"{address}: an address"):
            beam.check_folder(address)
    for folder in (task.folder, "frames", "a:b/frames", "./gs:/frames"):
        beam.check_folder(folder)


def test_options_that_nobody_knows_are_refused_or_named(installed, caplog):
    with pytest.raises(FrameStoreError, match="--strid: unknown here, and to Beam's local runner"):
        beam.runner([*DIRECT, "--strid=6"])
    beam.runner([*DIRECT, "--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    beam.runner(["--runner=FlinkRunner", "--parallelism=2", "--state_backend=rocksdb"])
    assert "go to FlinkRunner: --state_backend" in caplog.text


def test_without_beam_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(FrameStoreError, match=r"--runner=X.*pip install -e \.\[beam\]"):
        beam.runner(["--runner=X"])


def test_no_command_imports_beam_or_tfds_before_it_is_asked():
    program = """
import sys, rvllm_jax.data.prepare.beam, rvllm_jax.data.store.reader, rvllm_jax.data.store.metadata
print({"apache_beam", "tensorflow_datasets"} & sys.modules.keys())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["set()"]
