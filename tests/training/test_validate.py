import math

from rvllm_jax.training.validate import boundary_losses

INPUTS = {"language": "caption_in_slot", "visual": "video", "joint": "video"}


def record(step, stage, loss, kind="validation"):
    return {"step": step, "stage": stage, "kind": kind, "loss": loss}


RECORDS = [
    *[record(100, "language", 0.1), record(200, "visual", 0.9), record(300, "visual", 1.5)],
    *[record(350, "visual", 1.3), record(350, "visual", 0.2, "train")],
    *[record(400, "joint", math.nan), record(450, "joint", 1.6), record(550, "joint", 1.2)],
    *[record(500, "joint", 0.3, "train"), record(551, "joint", 0.5)],
]


def test_the_last_loss_before_and_the_lowest_soon_after():
    expected = {"before": 1.3, "at": 350, "after": 1.2, "step": 550}
    assert boundary_losses(RECORDS, INPUTS) == {"visual -> joint": expected}
    expected |= {"after": 1.6, "step": 450}
    assert boundary_losses(RECORDS, INPUTS, within=199) == {"visual -> joint": expected}


def test_boundaries_without_both_losses_are_left_out():
    assert boundary_losses(RECORDS, INPUTS, within=50) == {}
    assert boundary_losses(RECORDS[5:], INPUTS) == {}
    assert boundary_losses(RECORDS, {"joint": "video"}) == {}
