"""When the results of an earlier start are taken as they are, and when a model is asked anew."""

import json

import pytest

from rvllm_jax.experiments.train import _earlier_results

ASKED = {"train": "2 conversations in 1 rows, abc"}
KEPT = {"accuracy": {"train": {"all": 0.5}}, "steps": 7, "asked": ASKED}


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
def test_results_of_views_that_were_fused_otherwise_are_made_anew(tmp_path, named, fusion, anew):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(json.dumps(KEPT | named))
    earlier = _earlier_results(tmp_path, 7, ASKED, fusion)
    assert earlier == (None if anew else KEPT | named)


def test_results_of_another_checkpoint_or_other_questions_are_made_anew(tmp_path):
    assert _earlier_results(tmp_path, 7, ASKED, "") is None
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(json.dumps(KEPT))
    assert _earlier_results(tmp_path, 7, ASKED, "") == KEPT
    assert _earlier_results(tmp_path, 8, ASKED, "") is None
    assert _earlier_results(tmp_path, 7, {"train": "others"}, "") is None
