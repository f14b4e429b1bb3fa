"""The report of the input's rate, over a small store."""

import argparse
import json

import pytest

from rvllm_jax.bench import main
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.speed import input
from rvllm_jax.speed.input_steps import LIMITS, PIPELINE, Steps

SMALL = "--frames=4 --step=2 --crop=32 --batch=2 --batches=2 --rounds=1 --workers=1".split()


def figures(report: str, name: str) -> list[float]:
    line = next(line for line in report.splitlines() if line.startswith(name + "  "))
    return [float(value) for value in line[34:].split("(")[0].split()]


def test_every_step_has_its_rate_and_the_slowest_is_named(tmp_path, capsys):
    file = tmp_path / "figures.json"
    main(["input", *SMALL, f"--json={file}"])
    kept = json.loads(file.read_text())["seconds_a_clip"]
    raw, jpeg = capsys.readouterr().out.strip().split("\n\n")
    assert raw.startswith("raw: 4 frames of 32 pixels") and jpeg.startswith("jpeg: ")
    for report, absent in ((raw, {"decode", "simplejpeg alone"}), (jpeg, set())):
        for name in {*PIPELINE, *LIMITS} - absent:
            clips, megabytes, milliseconds = figures(report, name)
            (seconds,) = kept[report.partition(":")[0]]
            assert milliseconds == pytest.approx(1e3 * seconds[name], abs=0.01)
            assert clips > 0 and milliseconds == pytest.approx(1000 / clips, rel=0.1, abs=0.01)
            if name not in ("read", "file read"):
                assert megabytes == pytest.approx(clips * 4 * 32 * 32 * 3 / 1e6, rel=0.1, abs=1)
        assert "one process / hand-written loop: " in report
        assert any(f"'{name}' binds: " in report for name in PIPELINE)
    assert "one process / simplejpeg alone: " in jpeg and "simplejpeg" not in raw


QUIET = {"read": 1.0, "decode": 5.0, "crop": 5.5, "batch": 6.0, "to device": 8.0}


def lines_of(*rounds: dict[str, float]) -> list[str]:
    rounds = [own | {"hand-written loop": 4.0} for own in rounds]
    return list(input.report(rounds, dict.fromkeys(rounds[0], 10**6)))


def test_what_binds_is_what_adds_most_to_the_steps_before():
    assert lines_of(QUIET)[-1] == "'decode' binds: 50% of a clip's time in one process"
    without = {name: seconds for name, seconds in QUIET.items() if name != "decode"}
    assert lines_of(without)[-1].startswith("'crop' binds: 56%")


def test_a_round_under_load_gives_no_more_than_the_whole_and_is_called_noisy():
    loaded = QUIET | {"decode": 30.0, "crop": 16.0}  # then the load went away
    *_, binds, noisy = lines_of(QUIET, loaded, QUIET)
    assert binds == "'decode' binds: 50% of a clip's time in one process"
    assert noisy.startswith("noisy: in 1 of 3 rounds a step took less time than one that is part")
    *_, binds, noisy = lines_of(loaded)
    assert binds == "'decode' binds: 91% of a clip's time in one process"
    assert "(added: 29000.00)" in lines_of(loaded)[2] and "(added: 0.00)" in lines_of(loaded)[3]


def test_lines_come_when_they_are_known(tmp_path):
    parser = argparse.ArgumentParser()
    input.add_arguments(parser)
    arguments = parser.parse_args([*SMALL, "--rounds=2"])
    raw = next(input.render(tmp_path, arguments))
    lines = input.time_store(FrameStore(raw), arguments)
    assert next(lines).startswith("raw: ") and next(lines).startswith("round 1, ms a clip: read ")
    lines.close()


def test_a_store_of_one_s_own_is_measured(tmp_path):
    parser = argparse.ArgumentParser()
    input.add_arguments(parser)
    *_, jpeg = input.render(tmp_path, parser.parse_args(SMALL))
    report = "\n".join(input.run(parser.parse_args([*SMALL, f"--store={jpeg}"])))
    assert report.startswith("jpeg: ") and "raw" not in report
    assert len(FrameStore(jpeg).entries) == 4
    with pytest.raises(FrameStoreError, match="none of its 4 videos has the 199 stored frames"):
        list(input.run(parser.parse_args([*SMALL, "--frames=100", f"--store={jpeg}"])))
    with pytest.raises(FrameStoreError, match="none of its frames holds a crop of 999"):
        list(input.run(parser.parse_args([*SMALL, "--crop=999", f"--store={jpeg}"])))
    # Every sequence of a batch has a clip, however many videos there are.
    steps = Steps(FrameStore(jpeg), parser.parse_args([*SMALL, "--batch=3"]))
    assert len(steps._dataset.sequences) % 3 == 0
