import dataclasses

import pytest

from rvllm_jax.config.stage import OptimizerSpec, Stage, StageError
from rvllm_jax.models.lora import LoRA

PATHS = ("encoder/stem/kernel", "encoder/norm/bias", "projector/kernel", "decoder/head/kernel")
SGD, ADAMW = OptimizerSpec("sgd", 0.01), OptimizerSpec("adamw", 1e-4)
STAGE = Stage(
    name="alignment",
    input="video",
    batch=2,
    table=(("encoder/.*bias", "frozen"), ("encoder/.*", "sgd"), (".*", "frozen")),
    optimizers={"sgd": SGD, "adamw": ADAMW},
)


def with_table(*table) -> Stage:
    return dataclasses.replace(STAGE, table=table)


def test_first_match_wins():
    assert STAGE.labels(PATHS) == {
        "encoder/stem/kernel": "sgd",
        "encoder/norm/bias": "frozen",
        "projector/kernel": "frozen",
        "decoder/head/kernel": "frozen",
    }


def test_a_pattern_matches_the_whole_path():
    with pytest.raises(StageError, match="decoder/head/kernel"):
        with_table(("(encoder|projector)/.*", "sgd"), ("decoder", "frozen")).labels(PATHS)


def test_unmatched_parameters_are_named():
    with pytest.raises(StageError) as error:
        with_table(("encoder/.*", "sgd"), ("projector/.*", "frozen")).labels(PATHS)
    message = str(error.value)
    assert "alignment" in message and "matches 1 parameters: decoder/head/kernel. Add" in message
    assert "config.stages.alignment.table" in message and "projector/kernel" not in message


def test_many_unmatched_parameters_are_counted():
    paths = [f"decoder/{n}" for n in range(7)]
    with pytest.raises(StageError, match=r"7 parameters: .*decoder/4 \.\.\.\.") as error:
        with_table(("encoder/.*", "sgd")).labels(paths)
    assert "decoder/5" not in str(error.value)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(StageError, match=r"\['lion'\].*optimizers \(sgd, adamw\)"):
        with_table(("encoder/.*", "lion"), (".*", "frozen")).labels(PATHS)


def test_what_is_no_regular_expression_is_named_with_its_key():
    with pytest.raises(StageError, match=r"config\.stages\.alignment\.table: '\(encoder/\.\*'"):
        with_table(("(encoder/.*", "sgd"), (".*", "frozen")).labels(PATHS)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    STAGE.check(PATHS, devices=2)
    with pytest.raises(StageError, match=r"alignment\.batch=2 must be a multiple of 4 devices"):
        STAGE.check(PATHS, devices=4)
    with pytest.raises(StageError, match=r"accumulate=2"):
        dataclasses.replace(STAGE, accumulate=2).check(PATHS, devices=2)
    with pytest.raises(StageError, match="freezes every parameter"):
        with_table((".*", "frozen")).check(PATHS, devices=1)


def test_all_frozen_is_refused():
    with pytest.raises(StageError, match="alignment.*freezes every parameter"):
        with_table((".*", "frozen")).labels(PATHS)


@pytest.mark.parametrize(
    "table, freeze_stats, expected",
    [
        ([("projector/.*", "sgd"), (".*", "frozen")], False, True),  # all of the encoder frozen
        ([("encoder/.*bias", "frozen"), (".*", "sgd")], False, False),  # a part of it frozen
        ([(".*", "adamw")], False, False),
        ([(".*", "adamw")], True, True),  # by key
    ],
)
def test_statistics_run_where_the_encoder_is_frozen_or_by_key(table, freeze_stats, expected):
    stage = dataclasses.replace(with_table(*table), freeze_stats=freeze_stats)
    assert stage.uses_running_stats(stage.labels(PATHS)) is expected


ADAPTED = (*PATHS, "decoder/layers/mlp/up/kernel", "decoder/layers/mlp/up/lora/lora_a")


def test_with_adapters_they_alone_train_of_the_decoder():
    everything = with_table((".*", "adamw"))
    labels = dataclasses.replace(everything, lora=LoRA(2, 4.0, "mlp/up")).labels(ADAPTED)
    assert {path for path, label in labels.items() if label == "frozen"} == {
        "decoder/head/kernel",
        "decoder/layers/mlp/up/kernel",
    }
    labels = everything.labels(ADAPTED)  # a stage of the same run that has no adapters of its own
    assert [p for p, label in labels.items() if label == "frozen"] == [ADAPTED[-1]]


def test_a_table_that_freezes_the_adapters_is_refused():
    stage = dataclasses.replace(STAGE, lora=LoRA(2, 4.0, "mlp/up"))
    with pytest.raises(StageError, match=r"alignment\.lora adds .*up/lora/lora_a .*a row such as"):
        stage.labels(ADAPTED)


def test_micro_batches_are_noted_where_batchnorm_takes_its_statistics_of_them():
    cut = dataclasses.replace(with_table((".*", "sgd")), batch=8, accumulate=4)
    note = cut.micro_batch_note(PATHS, "batch")
    assert "each micro-batch of 2 clips" in note and "alignment.accumulate=4" in note
    without = [
        dataclasses.replace(cut, accumulate=1),
        dataclasses.replace(cut, input="caption_in_slot"),
        dataclasses.replace(cut, freeze_stats=True),
        dataclasses.replace(cut, table=(("encoder/.*", "frozen"), (".*", "sgd"))),
    ]
    assert not any(stage.micro_batch_note(PATHS, "batch") for stage in without)
    assert cut.micro_batch_note(PATHS, "group") == ""
