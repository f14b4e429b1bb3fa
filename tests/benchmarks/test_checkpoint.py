"""The report of the rate of checkpoints, over a model of some ten thousand parameters."""

from pathlib import Path

import pytest

from rvllm_jax.bench import main

CONFIG = f"{Path(__file__).parents[2] / 'configs' / 'joint.py'}:bench"
SMALL = "model.encoder=narrow model.decoder=tiny schedule=joint stages.joint.batch=8".split()


def test_times_and_rates_of_the_bytes_saved(tmp_path, capsys):
    main(
        ["checkpoint", f"--config={CONFIG}", "--rounds=2", f"--folder={tmp_path}", "--set", *SMALL]
    )
    _, head, *lines = capsys.readouterr().out.splitlines()
    size = float(head.split()[-2])
    found = {name: (float(seconds), float(rate)) for name, seconds, rate in map(str.split, lines)}
    assert list(found) == ["blocked", "saved", "restored"]
    for seconds, rate in found.values():
        assert seconds * rate == pytest.approx(size, rel=0.1)
    assert found["blocked"][0] <= found["saved"][0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argument, said",
    [("--folder=nowhere", "there is no such folder"), ("--rounds=0", "at least one measurement")],
)
def test_what_cannot_be_measured_is_refused(argument, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", f"--config={CONFIG}", argument])
    assert ended.value.code == 1 and said in capsys.readouterr().err
