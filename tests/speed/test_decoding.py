"""The report of a preparation's rate."""

import numpy as np
import pytest

from rvllm_jax.bench import main
from rvllm_jax.data.video import encode
from rvllm_jax.speed import decoding


def test_every_step_has_its_seconds_beside_bare_pyav(tmp_path, capsys):
    for name in ("a", "b"):
        frames = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), np.uint8)
        encode.write(tmp_path / f"{name}.mp4", frames, fps=25)
    main(["decode", f"--videos={tmp_path}", "--short_side=32", "--stride=2", "--rounds=2"])
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first == "2 files, every 2-th frame, 2 rounds"
    seconds = {line[:24].strip(): float(line[24:32]) for line in lines}
    shares = {line[:24].strip(): float(line[32:]) for line in lines}
    ours = [decoding.DECODED, "ours: raw shard", "ours: jpeg shard"]
    assert list(seconds) == [decoding.BARE, decoding.SCALED, *ours]
    assert min(seconds.values()) >= 0 and shares[decoding.SCALED] == 1


def test_a_folder_without_videos_is_refused(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["decode", f"--videos={tmp_path}"])
    assert "holds no video" in ended.value.code  # a text: the interpreter prints it, with code 1
