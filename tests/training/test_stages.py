import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.models.lora import LoRA
from rvllm_jax.training.stages import (
    StageError,
    check_stage,
    describe_trained,
    frozen_norms,
    label_parameters,
    micro_batch_note,
    prepare_stage,
)

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
    assert label_parameters(STAGE, PATHS) == {
        "encoder/stem/kernel": "sgd",
        "encoder/norm/bias": "frozen",
        "projector/kernel": "frozen",
        "decoder/head/kernel": "frozen",
    }


def test_a_pattern_matches_the_whole_path():
    with pytest.raises(StageError, match="decoder/head/kernel"):
        label_parameters(
            with_table(("(encoder|projector)/.*", "sgd"), ("decoder", "frozen")), PATHS
        )


def test_unmatched_parameters_are_named():
    with pytest.raises(StageError) as error:
        label_parameters(with_table(("encoder/.*", "sgd"), ("projector/.*", "frozen")), PATHS)
    message = str(error.value)
    assert "alignment" in message and "matches 1 parameters: decoder/head/kernel. Add" in message
    assert "config.stages.alignment.table" in message and "projector/kernel" not in message


def test_many_unmatched_parameters_are_counted():
    paths = [f"decoder/{n}" for n in range(7)]
    with pytest.raises(StageError, match=r"7 parameters: .*decoder/4 \.\.\.\.") as error:
        label_parameters(with_table(("encoder/.*", "sgd")), paths)
    assert "decoder/5" not in str(error.value)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(StageError, match=r"\['lion'\].*optimizers \(sgd, adamw\)"):
        label_parameters(with_table(("encoder/.*", "lion"), (".*", "frozen")), PATHS)


def test_what_is_no_regular_expression_is_named_with_its_key():
    with pytest.raises(StageError, match=r"config\.stages\.alignment\.table: '\(encoder/\.\*'"):
        label_parameters(with_table(("(encoder/.*", "sgd"), (".*", "frozen")), PATHS)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    check_stage(STAGE, PATHS, devices=2)
    with pytest.raises(StageError, match=r"alignment\.batch=2 must be a multiple of 4 devices"):
        check_stage(STAGE, PATHS, devices=4)
    with pytest.raises(StageError, match=r"accumulate=2"):
        check_stage(dataclasses.replace(STAGE, accumulate=2), PATHS, devices=2)
    with pytest.raises(StageError, match="freezes every parameter"):
        check_stage(with_table((".*", "frozen")), PATHS, devices=1)


def test_all_frozen_is_refused():
    with pytest.raises(StageError, match="alignment.*freezes every parameter"):
        label_parameters(with_table((".*", "frozen")), PATHS)


STEM, BLOCK = "encoder/stem/norm", "encoder/stages/0/0/norm1"
NORMS = [f"{norm}/{leaf}" for norm in (STEM, BLOCK) for leaf in ("scale", "bias")]


@pytest.mark.parametrize(
    "table, freeze_stats, expected",
    [
        ([("projector/.*", "sgd"), (".*", "frozen")], False, {STEM, BLOCK}),
        ([("encoder/stem/.*", "frozen"), (".*", "sgd")], False, {STEM}),
        ([("encoder/.*(scale|bias)", "frozen"), (".*", "sgd")], False, {STEM, BLOCK}),
        ([("encoder/.*bias", "frozen"), (".*", "sgd")], False, set()),  # its scale trains
        ([(".*", "adamw")], False, set()),
        ([(".*", "adamw")], True, {STEM, BLOCK}),  # by key
    ],
)
def test_norms_whose_scale_and_bias_are_frozen_keep_their_statistics(table, freeze_stats, expected):
    stage = dataclasses.replace(with_table(*table), freeze_stats=freeze_stats)
    labels = label_parameters(stage, [*NORMS, "projector/kernel", "decoder/head/kernel"])
    assert frozen_norms(stage, labels) == expected


ADAPTED = (*PATHS, "decoder/layers/mlp/up/kernel", "decoder/layers/mlp/up/lora/lora_a")


def test_with_adapters_they_alone_train_of_the_decoder():
    everything = with_table((".*", "adamw"))
    labels = label_parameters(dataclasses.replace(everything, lora=LoRA(2, 4.0, "mlp/up")), ADAPTED)
    assert {path for path, label in labels.items() if label == "frozen"} == {
        "decoder/head/kernel",
        "decoder/layers/mlp/up/kernel",
    }
    labels = label_parameters(
        everything, ADAPTED
    )  # a stage of the same run that has no adapters of its own
    assert [p for p, label in labels.items() if label == "frozen"] == [ADAPTED[-1]]


def test_a_table_that_freezes_the_adapters_is_refused():
    stage = dataclasses.replace(STAGE, lora=LoRA(2, 4.0, "mlp/up"))
    with pytest.raises(StageError, match=r"alignment\.lora adds .*up/lora/lora_a .*a row such as"):
        label_parameters(stage, ADAPTED)


def test_micro_batches_are_noted_where_batchnorm_takes_its_statistics_of_them():
    cut = dataclasses.replace(with_table((".*", "sgd")), batch=8, accumulate=4)
    note = micro_batch_note(cut, NORMS, "batch")
    assert "each micro-batch of 2 clips" in note and "alignment.accumulate=4" in note
    without = [
        dataclasses.replace(cut, accumulate=1),
        dataclasses.replace(cut, input="caption_in_slot"),
        dataclasses.replace(cut, freeze_stats=True),
        dataclasses.replace(cut, table=(("encoder/.*", "frozen"), (".*", "sgd"))),
        dataclasses.replace(cut, table=((".*/norm.*", "frozen"), (".*", "sgd"))),
    ]
    assert not any(micro_batch_note(stage, [*PATHS, *NORMS], "batch") for stage in without)
    some = dataclasses.replace(cut, table=(("encoder/stem/.*", "frozen"), (".*", "sgd")))
    assert micro_batch_note(some, NORMS, "batch")
    assert micro_batch_note(cut, NORMS, "group") == ""


def test_parameters_that_train_are_counted_by_part():
    shapes = dict.fromkeys([*NORMS, *ADAPTED], jax.ShapeDtypeStruct((10, 100), jnp.float32))
    shapes["projector/kernel"] = jax.ShapeDtypeStruct((3000, 1000), jnp.float32)
    table = (("encoder/stem/.*", "frozen"), (".*", "adamw"))
    stage = dataclasses.replace(with_table(*table), lora=LoRA(2, 4.0, "mlp/up"))
    assert describe_trained(prepare_stage(stage, shapes, 10), shapes) == (
        "stage alignment trains 3.0 million of 3.0 million parameters: encoder 3,000, "
        "projector 3.0 million, LoRA 1,000"
    )
    alone = dataclasses.replace(stage, table=((".*lora.*", "adamw"), (".*", "frozen")))
    told = describe_trained(prepare_stage(alone, shapes, 10), shapes)
    assert told.endswith("trains 1,000 of 3.0 million parameters: LoRA 1,000")
