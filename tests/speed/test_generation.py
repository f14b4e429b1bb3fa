"""The report of the decoding rate, over a model of a few thousand parameters."""

import json
import re

import pytest

from rvllm_jax.bench import main
from rvllm_jax.speed import generation

SMALL = "--width=64 --layers=2 --vocab=400 --prompt=5 --new=6 --frames=2 --rounds=1".split()


@pytest.mark.slow
def test_ours_and_theirs_decode_the_same_and_every_ratio_is_there(tmp_path, capsys):
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason="the extra `parity` holds torch")
    file = tmp_path / "figures.json"
    main(["generation", *SMALL, "--batches", "1", "3", f"--json={file}"])
    kept = json.loads(file.read_text())["seconds"]
    assert list(kept) == ["batch 1", "batch 3", "first token", "ten questions"]
    report = capsys.readouterr().out
    for batch in (1, 3):
        assert f"batch {batch}: 100.0% of the greedy ids are the same" in report
        ours, theirs = (
            float(re.search(rf"^batch {batch}, {who} +([\d.]+)", report, re.M)[1])
            for who in ("ours", "theirs")
        )
        ratio = float(re.search(rf"^batch {batch}, ours .* ([\d.]+)$", report, re.M)[1])
        assert ratio == pytest.approx(ours / theirs, abs=0.02, rel=0.1)
        assert kept[f"batch {batch}"] == pytest.approx(
            {"ours": ours / 1e3, "theirs": theirs / 1e3}, abs=1e-4
        )
    for name in ("first token of a new session", "ten questions, one video"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+$", report, re.M)


def test_without_torch_the_message_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(generation.importlib, "import_module", absent)
    with pytest.raises(SystemExit) as ended:
        main(["generation", *SMALL])
    assert "pip install -e .[parity]" in str(ended.value.code)  # a text: exit code 1
