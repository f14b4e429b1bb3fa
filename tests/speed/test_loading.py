"""The report of a folder's rate to the device."""

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rvllm_jax.bench import main
from rvllm_jax.speed import loading
from rvllm_jax.weights.open import open_weights


@pytest.fixture
def folder(tmp_path):
    return loading.make(tmp_path, layers=2, width=64, mlp=96, vocab=500)


def test_ours_stands_beside_the_disk_and_memory(folder, capsys):
    main(["load", f"--folder={folder}", "--rounds=1", "--dtype=float32"])
    first, _, *lines, last = capsys.readouterr().out.splitlines()
    size = sum(x.nbytes for x in load_file(folder / "model.safetensors").values())
    assert first == f"{size / 1e9:.2f} GB of float16 to float32 on cpu, 1 rounds"
    rates = {line[:16].strip(): float(line[16:24]) for line in lines}
    shares = {line[:16].strip(): float(line[24:]) for line in lines}
    assert list(rates) == ["disk", "cache", "ours, disk", "ours, cache"]
    assert min(rates.values()) >= 0 and shares["disk"] == 1
    assert re.fullmatch(r"host memory beyond .*: (\d+ MB|not measured)", last)


def test_what_is_held_for_a_moment_is_counted(folder):
    weights = open_weights(folder)
    arrays = loading._load(weights, np.dtype(np.float32), jax.local_devices()[0])
    assert arrays == 4 * sum(int(np.prod(x.shape)) for x in weights.entries.values())

    def load():
        return np.ones(50 << 20, np.uint8).nbytes // 2  # half of it is the arrays'

    beyond = loading._beyond(load)
    assert beyond is None or 20e6 < beyond < 40e6


def test_what_holds_no_weights_is_refused(tmp_path, capsys):
    for argument, message in ((f"--folder={tmp_path}", "holds no"), ("--layers=0", "one at least")):
        with pytest.raises(SystemExit) as ended:
            main(["load", argument])
        assert message in ended.value.code  # a text: Python prints it and exits with 1
