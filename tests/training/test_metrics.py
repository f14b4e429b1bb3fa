import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from rvllm_jax.training.metrics import Metrics, MetricsError, read


def events(workdir):
    """(tag, step, value) of all scalars that a reader of the TensorBoard folder finds."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place < len(data):  # a TFRecord: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            place += 12 + length + 4
    return sorted(found)


def test_each_step_once_after_restarts_in_both_files(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3, 4):
        assert metrics.log(step, "sgd", {"loss": step / 2})
    metrics.log(4, "sgd", {"loss": 9}, kind="validation")
    metrics.close()
    for start in (2, 2, 3):
        metrics = Metrics(tmp_path, start)
        for step in range(start + 1, 6):
            metrics.log(step, "adamw", {"loss": step / 2})
        metrics.close()
    records = read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["stage"], r["kind"]) for r in records] == [
        (1, "sgd", "train"),
        (2, "sgd", "train"),
        (3, "adamw", "train"),
        (4, "adamw", "train"),
        (5, "adamw", "train"),
    ]
    assert events(tmp_path) == [("train/loss", step, step / 2) for step in (1, 2, 3, 4, 5)]


def test_a_repeated_record_is_not_written_twice_also_after_a_restart(tmp_path):
    metrics = Metrics(tmp_path, 0)
    assert metrics.log(1, "sgd", {"loss": 1})
    assert not metrics.log(1, "sgd", {"loss": 2})
    assert metrics.log(1, "sgd", {"loss": 3}, kind="validation")
    metrics.close()
    metrics = Metrics(tmp_path, 1)
    assert not metrics.log(1, "sgd", {"loss": 4}, kind="validation")
    metrics.close()
    assert [r["loss"] for r in read(tmp_path / "metrics.jsonl")] == [1, 3]
    assert events(tmp_path) == [("train/loss", 1, 1.0), ("validation/loss", 1, 3.0)]


def test_numbers_of_all_sorts_become_valid_json_and_come_back(tmp_path):
    values = {
        "nan": math.nan,
        "inf": jnp.float32(math.inf),
        "minus": -np.inf,
        "array": np.float32([0.5]),
        "count": np.int64(3),
        "bfloat": jnp.bfloat16(1.5),
        "flag": True,
    }
    metrics = Metrics(tmp_path, 0)
    metrics.log(np.int32(7), "größe", values)
    metrics.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert [line[k] for k in ("nan", "inf", "minus")] == ["NaN", "Infinity", "-Infinity"]
    (record,) = read(tmp_path / "metrics.jsonl")
    assert math.isnan(record.pop("nan"))
    assert record == {
        "step": 7,
        "stage": "größe",
        "kind": "train",
        "inf": math.inf,
        "minus": -math.inf,
        "array": 0.5,
        "count": 3,
        "bfloat": 1.5,
        "flag": 1,
    }
    assert [tag for tag, _, _ in events(tmp_path)] == [
        "train/array",
        "train/bfloat",
        "train/count",
        "train/flag",
    ]


@pytest.mark.parametrize(
    "values, error",
    [({"x": "much"}, TypeError), ({"x": np.ones(2)}, ValueError), ({"stage": 1}, ValueError)],
)
def test_what_is_no_number_is_refused(tmp_path, values, error):
    metrics = Metrics(tmp_path, 0)
    with pytest.raises(error):
        metrics.log(1, "sgd", values)
    metrics.close()
    assert read(tmp_path / "metrics.jsonl") == []


GOOD = '{"step": %d, "stage": "sgd", "kind": "train", "loss": 1}'


@pytest.mark.parametrize("tail", [GOOD[:20], GOOD % 2, '{"step": 2}', "\x00\x00"])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_text(GOOD % 1 + "\n" + tail)
    metrics = Metrics(tmp_path, 5)
    metrics.log(2, "sgd", {"loss": 2})
    metrics.close()
    records = read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("line", ["what?", '{"step": 2}', "[]", (GOOD % 2).replace("2", '"2"'), ""])
def test_a_bad_line_before_the_last_is_named_and_nothing_is_lost(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([GOOD % 1, line, GOOD % 3, ""]))
    before = path.read_bytes()
    with pytest.raises(MetricsError, match="metrics.jsonl: line 2: .*remove it"):
        Metrics(tmp_path, 5)
    assert path.read_bytes() == before


def test_what_is_flushed_survives_sigkill(tmp_path):
    program = """
        import os, signal, sys
        from rvllm_jax.training.metrics import Metrics
        metrics = Metrics(sys.argv[1], 0)
        for step in range(1, 4):
            metrics.log(step, "sgd", {"loss": step})
        metrics.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert [r["step"] for r in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [step for _, step, _ in events(tmp_path)] == [1, 2, 3]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("what", ["metrics.jsonl", "events"])
def test_a_full_disk_is_reported_with_the_path_and_what_to_do(tmp_path, what):
    metrics = Metrics(tmp_path, 0)
    full = os.open("/dev/full", os.O_WRONLY)
    events = metrics._events._py_recordio_writer._writer.fileno()
    os.dup2(full, metrics._lines._file if what == "metrics.jsonl" else events)
    os.close(full)
    with pytest.raises(MetricsError, match="No space left.*Free some space") as error:
        metrics.log(1, "sgd", {"loss": 1})
        metrics.flush()
    assert str(tmp_path / "metrics.jsonl") in str(error.value)


def test_other_processes_of_a_distributed_run_write_nothing(tmp_path):
    metrics = Metrics(tmp_path, 0, writes=False)
    assert not metrics.log(1, "sgd", {"loss": 1})
    metrics.flush()
    metrics.close()
    assert list(tmp_path.iterdir()) == []
