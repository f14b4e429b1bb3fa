"""Every row is used, set aside with its reason, or refused; none is lost."""

from pathlib import Path

import pytest

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.formats import FORMATS
from rvllm_jax.data.annotations.read import read
from rvllm_jax.data.prepare.tallies import find_duplicates
from rvllm_jax.types import Example, Turn

REAL = Path(__file__).parents[3].parent / "shared" / "data"

EXPECTED = {
    "llava": [Example("7", "dir/a.mp4", (Turn("What?", "It."), Turn("Who?", "I.")), "It. I.")],
    "video_instruct": [
        Example(f"v_k_ZXmr8pmrs:{n}", "v_k_ZXmr8pmrs", (Turn("What?", "It."),), "It.")
        for n in range(2)
    ],
    "zero_shot": [
        Example("q1", "clip", (Turn("who runs ?", "a man", "0"),), "a man"),
        Example("q2", "clip", (Turn("where ?", "outside", "3"),), "outside"),
    ],
    "activitynet": [
        Example("v_1QIUV7WYKXg_3", "1QIUV7WYKXg", (Turn("is it", "no", "3"),), "no"),
        Example("v_9eniCub7u60_2", "9eniCub7u60", (Turn("who", "a girl", "8"),), "a girl"),
    ],
    "generative": [
        Example("temporal:0", "v_p1QGn0IzfW0", (Turn("Then?", "He.", "temporal"),), "He.")
    ],
    "consistency": [
        Example(
            "consistency:0",
            "v_UZm05CvtxkA",
            (Turn("A?", "C.", "consistency"), Turn("B?", "C.", "consistency")),
            "C.",
        )
    ],
    "msvd_msrvtt_original": [
        Example("30933", "vid1201", (Turn("who pours?", "someone"),), "someone"),
        Example("0", "vid1", (Turn("what does an animal do?", "chew"),), "chew"),
    ],
    "tgif": [
        Example(
            "FRAMEQA1159",
            "tumblr_no73_250",
            (Turn('"stop says which ?', "sign", "0"),),
            'a sign says " stop .',
        ),
        Example(
            "FRAMEQA9405", "tumblr_nedt_250", (Turn("how many ?", "two", "1"),), "two men walk ."
        ),
    ],
}
BENCHMARKS = {
    "activitynet": "activitynet_qa",
    "generative": "video_text_generation/temporal",
    "consistency": "video_text_generation/consistency",
    "msvd_msrvtt_original": "msvd_qa",
    "tgif": "tgif_frameqa",
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_with_and_without_being_named(format, samples, write):
    paths = write(samples[format])
    found = read(paths)
    assert found.examples == EXPECTED[format] == read(paths, format=format).examples
    assert found.format == format and not found.set_aside and not found.renamed
    (part,) = found.parts
    assert part.benchmark == BENCHMARKS.get(format, "")
    assert part.rows == len(part.examples)


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_that_the_files_are_not_in_is_refused(format, samples, write):
    wrong = "tgif" if format != "tgif" else "llava"
    with pytest.raises(AnnotationError, match=f"has the keys of the format '{format}'.*{wrong}"):
        read(write(samples[format]), format=wrong)
    with pytest.raises(AnnotationError, match="'csv' is unknown; choose one of llava, "):
        read(write(samples[format]), format="csv")


def test_the_three_generative_files_may_be_named_by_one_format(samples, write):
    paths = write(samples["consistency"])
    assert read(paths, format="generative").examples == EXPECTED["consistency"]


def test_msvds_other_names_go_both_ways_and_lie_beside_its_questions(samples, write):
    given = read(paths := write(samples["msvd_msrvtt_original"]))
    assert given.aliases["vid1201"] == "bQJQGoJF7_k_162_169"
    assert given.aliases["bQJQGoJF7_k_162_169"] == "vid1201"
    assert read(paths[:1]).aliases == given.aliases


def test_msrvtts_own_rows_have_categories_and_name_video_numbers(msrvtt, write):
    found = read(write({"train_qa.json": msrvtt}))
    assert [c.video for c in found.examples] == ["video6513", "video0"]
    assert [c.turns[0].kind for c in found.examples] == ["14", "0"]
    assert found.parts[0].benchmark == "msrvtt_qa" and not found.aliases


def test_own_rows_in_a_benchmarks_form_are_no_benchmark(write):
    rows = [{"video_name": "kitchen", "Q": "Then?", "A": "He."}]
    assert read(write({"generic_qa.json": rows})).parts[0].benchmark == ""


def test_a_pair_that_does_not_fit_is_refused_both_ways(samples, write):
    pair = samples["zero_shot"]
    for name, other in (("test_a.json", "test_q.json"), ("test_q.json", "test_a.json")):
        less = pair | {name: pair[name][:1]}
        left = ({row["question_id"] for row in pair[other]}
                - {row["question_id"] for row in less[name]}).pop()  # fmt: skip
        with pytest.raises(AnnotationError, match=f"{name}: has no row for 1 of the 2 .*{left}"):
            read(write(less))


@pytest.mark.parametrize("name", ["test_q.json", "test_a.json"])
def test_a_question_id_twice_is_refused_with_both_places(name, samples, write):
    pair = samples["zero_shot"]
    pair[name] = [*pair[name], pair[name][0]]
    with pytest.raises(AnnotationError, match=f"{name}: record 2: .* is that of .*{name}: rec.* 0"):
        read(write(pair))


@pytest.mark.parametrize(
    "format", ["tgif", "msvd_msrvtt_original", "video_instruct", "generative", "consistency"]
)
def test_a_file_given_twice_is_refused(format, samples, write):
    path = write(samples[format])[0]
    with pytest.raises(AnnotationError, match="given once"):
        read([path, path])


@pytest.mark.parametrize("format", ["video_instruct", "generative", "tgif"])
def test_two_files_without_ids_of_their_own_go_together(format, samples, write):
    (content,) = samples[format].values()
    name = {"video_instruct": "a.json", "generative": "temporal.json", "tgif": "a.csv"}[format]
    if format == "tgif":
        content = content.replace("vid_id", "unused").replace("video", "")
        more = content.replace("how many", "how few")
    else:
        more = [*content, content[0] | dict.fromkeys(content[0].keys() & {"q", "Q"}, "Else?")]
    paths = [write({f"{part}{name}": text})[0] for part, text in (("", content), ("more_", more))]
    found = read(paths)
    alone = [c.id for c in read(paths[:1]).examples]
    ids = [c.id for c in found.examples]
    assert ids[: len(alone)] == alone and ids[len(alone)] == f"{alone[0]}#2"
    assert len(set(ids)) == len(ids) == sum(part.rows for part in found.parts)
    assert found.parts[0].rows < found.parts[1].rows or format == "tgif"
    assert not found.set_aside and not found.renamed and find_duplicates(found.examples)


@pytest.mark.parametrize("key", ["Q1", "Q2", "A"])
def test_a_text_that_lacks_is_named_as_the_file_names_it(key, samples, write):
    (row,) = samples["consistency"]["consistency_qa.json"]
    lacking = {name: text for name, text in row.items() if name != key}
    found = read(write({"consistency_qa.json": [row, lacking]}))
    (why,) = found.set_aside.values()
    assert f"'{key}' must be a text, got None" in why


def test_rows_that_cannot_be_used_are_set_aside_with_place_and_reason(samples, write):
    rows = [
        {"q": "What?", "a": "It.", "video_id": "a"},
        {"q": " ", "a": "It.", "video_id": "a"},
        {"q": "What?", "a": "", "video_id": "a"},
        {"q": "What?", "a": "It.", "video_id": "../a"},
        {"q": "<video> What?", "a": "It.", "video_id": "a"},
        {"q": "What?", "a": "It."},
        "row",
    ]
    found = read(write({"vi.json": rows}))
    assert [c.id for c in found.examples] == ["a:0"]
    reasons = [
        "'q' must be",
        "'a' must be",
        "not inside",
        "'q' holds <video>",
        "'video'",
        "object",
    ]
    for (where, why), position, word in zip(
        found.set_aside.items(), range(1, 7), reasons, strict=True
    ):
        assert f"vi.json: record {position} " in where and word in why and where not in why
    with pytest.raises(AnnotationError, match="none of its 6 rows can be used; the first: .*rec"):
        read(write({"vi.json": rows[1:]}))


def test_a_short_row_of_a_table_is_set_aside(samples, write):
    table = samples["tgif"]["Test_frameqa_question.csv"] + "tumblr_x\twhat ?\n"
    found = read(write({"t.csv": table}))
    assert len(found.examples) == 2 and "record 2" in next(iter(found.set_aside))


@pytest.mark.parametrize(("old", "new", "fields"), [("how many", "how\tmany", 8),
                                                    ("\thow many", " how many", 6)])  # fmt: skip
def test_a_row_of_a_table_with_a_tab_too_many_or_too_few_is_set_aside(
    old, new, fields, samples, write
):
    """Its question, answer and type would be those of other columns."""
    table = samples["tgif"]["Test_frameqa_question.csv"].replace(old, new)
    found = read(write({"t.csv": table}))
    assert found.examples == EXPECTED["tgif"][:1]
    ((where, why),) = found.set_aside.items()
    assert (
        "record 1" in where and f"{fields} fields between tabs, and the table's head has 7" in why
    )


def test_mixed_llava_files_keep_what_is_about_videos_and_count_the_rest(samples, write):
    (record,) = samples["llava"]["mixed.json"]
    text = {key: value for key, value in record.items() if key != "video"} | {"id": "t"}
    rows = [record, text, text | {"image": "p.jpg"}, record | {"video": "b.mp4"}, record]
    found = read(write({"m.json": rows}))
    assert list(found.without_video.values()) == ["text alone", "a picture"]
    assert [(c.id, c.video) for c in found.examples] == [("7", "dir/a.mp4"), ("7#2", "b.mp4")]
    assert list(found.renamed.values()) == ["7#2"]
    ((where, why),) = found.set_aside.items()
    assert "record 4" in where and "repeats" in why and "record 0" in why
    assert found.parts[0].rows == 5


def test_a_record_that_asks_about_a_video_it_does_not_name_is_not_text_alone(samples, write):
    (record,) = samples["llava"]["mixed.json"]
    bare = {key: value for key, value in record.items() if key != "video"}
    asked = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "It."}]
    rows = [record, bare | {"vidoe": "a.mp4"}, bare | {"Video": ["a.mp4"]}]
    rows += [bare | {"conversations": asked}, bare | {"videos": [], "video_fps": 2}]
    found = read(write({"m.json": rows}))
    assert list(found.without_video.values()) == ["text alone"]
    reasons = list(found.set_aside.values())
    assert len(reasons) == 3 and all("has no 'video'; add it" in reason for reason in reasons)
    assert "'vidoe' may be meant" in reasons[0] and "'Video' may be meant" in reasons[1]


def test_questions_asked_twice_about_a_video_are_told(samples, write):
    pair = samples["zero_shot"]
    pair["test_q.json"][1]["question"] = "Who runs ?"
    (twice,) = find_duplicates(read(write(pair)).examples)
    assert (twice["video"], twice["question"]) == ("clip", "who runs ?")
    assert (twice["ids"], twice["answers"]) == (["q1", "q2"], ["a man", "outside"])
    pair["test_q.json"][1]["video_name"] = "other"
    assert not find_duplicates(read(write(pair)).examples)


SAMPLES = {
    ("annotations/msvd_qa/test_q.json", "annotations/msvd_qa/test_a.json"): ("msvd_qa", 1000, 40),
    ("annotations/msrvtt_qa/test_a.json", "annotations/msrvtt_qa/test_q.json"): (
        *("msrvtt_qa", 1000, 42),
    ),
    ("annotations/activitynet_qa/test_q.json", "annotations/activitynet_qa/test_a.json"): (
        *("activitynet_qa", 1000, 543),
    ),
    ("annotations/tgif_qa/Test_frameqa_question.csv",): ("tgif_frameqa", 1000, 949),
    ("annotations/video_text_generation/generic_qa.json",): (
        *("video_text_generation/generic", 400, 266),
    ),
    ("annotations/video_text_generation/temporal_qa.json",): (
        *("video_text_generation/temporal", 200, 200),
    ),
    ("annotations/video_text_generation/consistency_qa.json",): (
        *("video_text_generation/consistency", 200, 200),
    ),
    ("real_videos/llava.json",): ("", 12, 12),
    ("real_videos/video_instruct.json",): ("", 54, 12),
    ("real_videos/test_q.json", "real_videos/test_a.json"): ("", 54, 12),
}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: the samples of real rows are not there")
@pytest.mark.parametrize("files", SAMPLES)
def test_real_rows_are_read_completely(files):
    found = read([REAL / file for file in files])
    (part,) = found.parts
    assert (part.benchmark, part.rows, part.videos) == SAMPLES[files]
    assert len(part.examples) == part.rows and not found.set_aside
