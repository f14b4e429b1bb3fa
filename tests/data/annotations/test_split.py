"""Rows of one split under the name of another: told wherever anything tells."""

import pytest

from rvllm_jax.data.annotations import split as splits
from rvllm_jax.data.annotations.published import PUBLISHED
from rvllm_jax.data.annotations.read import AnnotationPart
from rvllm_jax.types import Example, Turn

FORMATS = {
    "activitynet_qa": "activitynet", "msvd_qa": "zero_shot", "msrvtt_qa": "zero_shot",
    "tgif_frameqa": "tgif", "video_text_generation/generic": "generative",
}  # fmt: skip


def part(benchmark, *ids, name="own.json", rows=None, format=None, videos=1):
    turn = (Turn("Who?", "He."),)
    examples = [Example(id, f"v{n % videos}", turn, "") for n, id in enumerate(ids)]
    format = format or FORMATS.get(benchmark, "llava")
    return AnnotationPart((f"/data/test/{name}",), format, benchmark, rows or len(ids), examples)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("val_q.json", "validation"),
        ("test_a.json", "test"),
        ("train.json", "train"),
        ("Test_frameqa_question.csv", "test"),
        ("Train_frameqa_question.csv", "train"),
    ],
)
@pytest.mark.parametrize("benchmark", ["activitynet_qa", "tgif_frameqa"])
def test_a_file_with_its_authors_name_is_of_no_other_split(benchmark, name, own):
    named = part(benchmark, "v_a_1", name=name)
    assert splits.evidence(named) == splits.NAME
    for split in ("train", "validation", "test"):
        found = splits.contradiction(named, split)
        assert found == (split != own and f"the file's name is that of {benchmark}'s split {own}"
                         or "")  # fmt: skip
    assert splits.contradiction(named, "mine") == ""


@pytest.mark.parametrize("name", ["own.json", "testament.json", "my_test.json"])
def test_another_name_tells_nothing(name):
    other = part("activitynet_qa", "v_a_1", name=name)
    assert splits.evidence(other) == splits.NOTHING
    assert splits.contradiction(other, "test") == splits.contradiction(other, "train") == ""


@pytest.mark.parametrize("format", ["zero_shot", "msvd_msrvtt_original"])
def test_numbers_go_before_a_name(format):
    """What is called test_q.json of MSVD-QA and MSRVTT-QA is their validation split."""
    numbered = part("msrvtt_qa", "158581", "158582", name="test_q.json", format=format)
    assert splits.evidence(numbered) == splits.NUMBERS
    assert splits.contradiction(numbered, "validation") == ""
    assert "numbers are those of msrvtt_qa's split validation" in splits.contradiction(
        numbered, "test"
    )
    mixed = part("msrvtt_qa", "158580", "158581", format=format)
    assert "158580 to 158581, are of no one split" in splits.contradiction(mixed, "train")
    named = part("msrvtt_qa", "a", name="test_qa.json", format=format)  # with ids of one's own
    assert splits.evidence(named) == splits.NAME and splits.contradiction(named, "train")


def test_more_than_a_split_has_is_not_that_split():
    for split, counts in PUBLISHED["activitynet_qa"].items():
        whole = part("activitynet_qa", "v_a_1", rows=counts.questions)
        assert splits.evidence(whole) == splits.ROWS and not splits.contradiction(whole, split)
        more = part("activitynet_qa", "v_a_1", rows=counts.questions + 1)
        assert f"are more than the {counts.questions:,} on" in splits.contradiction(more, split)
    whole = part("activitynet_qa", "v_a_1", rows=18_000)
    assert "18,000 rows are those of activitynet_qa's split validation" in splits.contradiction(
        whole, "test"
    )
    wide = part("activitynet_qa", *(f"v_{n}_1" for n in range(801)), videos=801)
    assert "801 rows on 801 videos are more than" in splits.contradiction(wide, "test")
    assert splits.contradiction(wide, "validation") == ""


def test_a_benchmark_that_is_a_test_has_no_other_split():
    generic = part("video_text_generation/generic", "a")
    assert splits.evidence(generic) == splits.ONLY and not splits.contradiction(generic, "test")
    assert "has the split test alone" in splits.contradiction(generic, "train")


def test_rows_of_no_benchmark_are_what_their_owner_says():
    own = part("", "158581", name="test.json", rows=8_000)
    assert splits.evidence(own) == splits.NOTHING and splits.contradiction(own, "train") == ""


def test_of_one_s_own_a_file_named_after_another_split_is_taken_with_a_warning(caplog):
    for name, split in (("validation.json", "validation"), ("own.json", "test"), ("val.json", "a")):
        assert splits.refusal([part("", "q1", name=name)], split) == ""
    assert not caplog.records
    assert splits.refusal([part("", "q1", name="validation.json")], "test") == ""
    assert "validation.json: named after the split validation" in caplog.text
