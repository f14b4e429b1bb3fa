"""What all measurements share: rounds, best and ratio, tables, --rounds and --json."""

import argparse
import json

import pytest

from rvllm_jax.config.check import ConfigError
from rvllm_jax.speed import measure


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser, rounds=4)
    return parser.parse_args(words)


def test_the_best_of_the_rounds_counts_without_the_first():
    times = iter([0.0, 9.0, 10.0, 13.0, 20.0, 22.0])  # start and end of each call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.time, "perf_counter", lambda: next(times))
        calls = []
        rounds = measure.time_calls(2, way=lambda: calls.append(0))
    assert measure.best(rounds, "way") == 2.0
    assert len(calls) == 3


def test_each_round_goes_through_all_ways_and_a_ratio_is_the_median_of_theirs():
    calls = []

    def timer(name: str, seconds: list[float]) -> measure.Timer:
        return lambda: calls.append(name) or seconds.pop(0)

    timers = {"a": timer("a", [1.0, 8.0, 3.0]), "b": timer("b", [2.0, 2.0, 2.0])}
    rounds = list(measure.run_rounds(3, timers))
    assert calls == list("ababab")
    assert measure.best(rounds, "a") == 1.0 and measure.ratio(rounds, "a", "b") == 1.5


def test_values_stand_below_their_heads():
    columns = measure.Columns(6, {"ms": "8.1f", "share": "7.0%"})
    assert columns.head == "            ms  share"
    assert columns.line("name", 12.34, 0.5) == "name      12.3    50%"
    assert columns.line("name", "-", "") == "name         -       "


def test_figures_are_kept_with_the_device_when_all_lines_were_given(tmp_path):
    def run(arguments):
        yield f"{arguments.rounds} rounds"
        return {"seconds": 1.5}

    file = tmp_path / "figures.json"
    lines = measure.report(run, parse(f"--json={file}"))
    assert next(lines) == "4 rounds" and not file.exists()
    assert list(lines) == []
    assert json.loads(file.read_text()) == {"device": "cpu", "devices": 8, "seconds": 1.5}
    assert list(measure.report(run, parse("--rounds=1"))) == ["1 rounds"]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--rounds=0", "--rounds=0: at least one measurement is needed"),
        ("--json=nowhere/x.json", "--json=nowhere/x.json: name a file in a folder that is there"),
    ],
)
def test_what_would_be_in_vain_is_refused_before_it_is_measured(argument, message):
    with pytest.raises(ConfigError, match=message):
        next(measure.report(lambda arguments: pytest.fail("measured"), parse(argument)))
