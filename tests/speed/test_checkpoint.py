"""The report of the rate of checkpoints, over a model of some ten thousand parameters."""

import json
from pathlib import Path

import pytest

from rvllm_jax.bench import main

CONFIG = f"{Path(__file__).parents[2] / 'configs' / 'joint.py'}:bench"
SMALL = "model.encoder=narrow model.decoder=tiny schedule=joint stages.joint.batch=8".split()


def test_times_and_rates_of_the_bytes_saved(tmp_path, capsys):
    folder, file = tmp_path / "there", tmp_path / "figures.json"
    folder.mkdir()
    where = [f"--folder={folder}", f"--json={file}"]
    main(["checkpoint", f"--config={CONFIG}", "--rounds=2", *where, "--set", *SMALL])
    _, head, *lines = capsys.readouterr().out.splitlines()
    size = float(head.split()[-2])
    found = {name: (float(seconds), float(rate)) for name, seconds, rate in map(str.split, lines)}
    assert list(found) == ["blocked", "saved", "restored"]
    for seconds, rate in found.values():
        assert seconds * rate == pytest.approx(size, rel=0.1)
    assert found["blocked"][0] <= found["saved"][0]
    assert not list(folder.iterdir())
    kept = json.loads(file.read_text())
    assert kept["bytes"] == pytest.approx(size * 1e6, rel=0.01) and kept["devices"] == 8
    for name, (seconds, _) in found.items():
        assert min(one[name] for one in kept["rounds"]) == pytest.approx(seconds, abs=1e-4)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--folder=nowhere"], "there is no such folder"),
        (["--json=nowhere/x.json"], "--json=nowhere/x.json: name a file in a folder"),
        (["--rounds=0"], "at least one measurement"),
        (["--set", *SMALL, "mesh.data=3"], "data=3 fsdp=1 tensor=1 does not cover the 8 devices"),
        (["--set", *SMALL, "mesh.data=1", "mesh.tensor=8"], "set it to a divisor of 2"),
        (["--set", *SMALL[:-1], "stages.joint.batch=3"], "must be a multiple of 8 devices"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", f"--config={CONFIG}", *arguments])
    assert said in ended.value.code  # a text: Python prints it and exits with 1
