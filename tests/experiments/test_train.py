"""When the results of an earlier start are taken as they are, and when a model is asked anew."""

import json

import pytest

from rvllm_jax.experiments.train import _earlier_results
from rvllm_jax.training.state import Position

ASKED = {"train": "2 conversations in 1 rows, abc"}
OLDER = {"accuracy": {"train": {"all": 0.5}}, "steps": 7, "asked": ASKED, "seconds": {"a": 1.25}}
MADE = {"model": "m", "fusion": "lock_step", "test_clips": "5x5", "max_new": 8}
KEPT = OLDER | {"made_with": MADE}
THERE = Position(done=7, seconds={"a": 1.25})


@pytest.fixture
def earlier(tmp_path):
    """earlier(results, ...) -> what is taken of them."""

    def earlier(results, position=THERE, asked=ASKED, **made):
        (tmp_path / "report").mkdir(exist_ok=True)
        (tmp_path / "report" / "results.json").write_text(json.dumps(results))
        return _earlier_results(tmp_path, position, asked, MADE | made)

    return earlier


@pytest.mark.parametrize(
    ("named", "fusion", "anew"),
    [
        ({"fusion": "lock_step"}, "lock_step", False),
        ({"fusion": "lock_step"}, "vote", True),
        ({"fusion": "vote"}, "lock_step", True),
        ({"fusion": ""}, "", False),
        ({}, "lock_step", False),  # by a version that knew one way alone
        ({}, "vote", False),
    ],
)
def test_results_of_views_that_were_fused_otherwise_are_made_anew(earlier, named, fusion, anew):
    assert earlier(OLDER | named, fusion=fusion) == (None if anew else OLDER | named)


def test_results_of_another_model_or_other_questions_are_made_anew(earlier, tmp_path):
    assert _earlier_results(tmp_path, THERE, ASKED, MADE) is None
    assert earlier(KEPT) == KEPT
    assert earlier(KEPT, Position(done=7, seconds={"a": 3.5})) == KEPT  # trained again, the same
    assert earlier(KEPT, Position(done=8)) is None
    assert earlier(KEPT, asked={"train": "others"}) is None
    for name, value in {"model": "n", "test_clips": "1x1", "max_new": 9}.items():
        assert earlier(KEPT, **{name: value}) is None, name


def test_results_of_an_earlier_version_are_known_by_the_time_that_their_training_took(earlier):
    assert earlier(OLDER) == OLDER
    assert earlier(OLDER, Position(done=7, seconds={"a": 1.5})) is None
    oldest = {name: value for name, value in OLDER.items() if name != "seconds"}
    assert earlier(oldest) == oldest


@pytest.mark.parametrize("content", ['{"accuracy": {', "[]", '{"accuracy": 3}', '{"steps": 7}'])
def test_broken_results_are_made_again_with_one_line(tmp_path, content, caplog):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(content)
    assert _earlier_results(tmp_path, THERE, ASKED, MADE) is None
    (record,) = caplog.records
    assert "results.json" in record.getMessage() and "made again" in record.getMessage()


def test_results_of_videos_that_were_shown_otherwise_are_made_anew(earlier):
    assert earlier(KEPT, frames=4) == KEPT  # not recorded: not known
    results = KEPT | {"made_with": MADE | {"frames": 6}}
    assert earlier(results, frames=6) == results
    assert earlier(results, frames=4) is None
