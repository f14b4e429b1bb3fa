"""Splits of annotation files: whole or refused, and called what they are."""

import json

import pytest

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.tfds.datasets import DATASETS
from rvllm_jax.data.tfds.splits import read_splits

SOURCES = {dataset.name: dataset for dataset in DATASETS}
# What others have measured on: split, questions, videos.
PUBLISHED = {
    "activitynet_qa": ("test", 8_000, 800),
    "tgif_frameqa": ("test", 13_691, 7_132),
    "video_text_generation/generic": ("generic", 1_996, 499),
    "video_text_generation/temporal": ("temporal", 499, 499),
    "video_text_generation/consistency": ("consistency", 499, 499),
    "msvd_qa": ("validation", 6_415, 245),
    "msrvtt_qa": ("validation", 12_278, 497),
}


def read(dataset, folder, allow_partial=False):
    return read_splits(folder, SOURCES[dataset.partition("/")[0]], allow_partial=allow_partial)


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_published_split_is_whole_and_called_what_it_is(dataset, published):
    split, questions, videos = PUBLISHED[dataset]
    (only,) = read(dataset, published(dataset, questions, videos)).items()
    assert only[0] == split, "the files are called test"
    facts = only[1].facts
    assert (facts["questions"], facts["videos"], facts["partial"]) == (questions, videos, "")
    assert facts["published"]["questions"] == len(only[1].examples) == questions


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_one_question_less_is_a_part_and_one_more_is_another_split(dataset, published):
    split, questions, videos = PUBLISHED[dataset]
    folder = published(dataset, questions - 1, videos)
    with pytest.raises(AnnotationError, match=f"{questions - 1:,} of {questions:,} questions"):
        read(dataset, folder)
    facts = read(dataset, folder, allow_partial=True)[split].facts
    assert f"{questions - 1:,} of {questions:,} questions" in facts["partial"]
    folder = published(dataset, questions + 1, videos)
    if dataset not in ("msvd_qa", "msrvtt_qa"):  # there the number is that of a test question
        with pytest.raises(
            AnnotationError, match=rf"split {split}, but {questions + 1:,} rows .* more than"
        ):
            read(dataset, folder, allow_partial=True)


@pytest.mark.parametrize("dataset", [name for name, (_, n, m) in PUBLISHED.items() if n > m])
def test_questions_on_fewer_videos_are_a_part(dataset, published):
    _, questions, videos = PUBLISHED[dataset]
    folder = published(dataset, questions, videos - 1)
    with pytest.raises(AnnotationError, match=f"{videos - 1:,} of {videos:,} videos.*partial"):
        read(dataset, folder)


@pytest.mark.parametrize(
    "dataset, starts",
    [
        ("msvd_qa", {"train": 0, "validation": 30_933, "test": 37_348}),
        ("msrvtt_qa", {"train": 0, "validation": 158_581, "test": 170_859}),
    ],
)
def test_a_pair_belongs_to_the_split_of_its_question_numbers(dataset, starts, pair):
    name, prefix = ("video7", "") if dataset == "msrvtt_qa" else ("-4wsuPCjDBc_5_15", "1_")

    def write(*numbers):
        return pair("test", [name] * len(numbers), [f"{prefix}{number}" for number in numbers])

    for split, start in starts.items():
        assert list(read(dataset, write(start, start + 1), allow_partial=True)) == [split]
    if dataset == "msrvtt_qa":  # one id that is no number: the others tell the split
        strange = write(*range(starts["validation"], starts["validation"] + 3), "x")
        assert list(read(dataset, strange, allow_partial=True)) == ["validation"]
    for start in (starts["validation"], starts["test"]):
        with pytest.raises(AnnotationError, match=f"{start - 1} to {start}, are of no one"):
            read(dataset, write(start, start - 1), allow_partial=True)
    with pytest.raises(AnnotationError, match="are of no one split"):
        read(dataset, write(1_000_000), allow_partial=True)


def test_two_files_of_one_split_are_refused(pair):
    pair("val", ["video6513"], ["158581"])
    folder = pair("test", ["video6514"], ["158582"])
    message = "test_q.json, test_a.json and val_q.json, val_a.json.*'validation'"
    with pytest.raises(AnnotationError, match=message):
        read("msrvtt_qa", folder, allow_partial=True)


def test_an_original_file_is_of_the_split_it_is_called(tmp_path):
    def write(name, number):
        row = {"id": number, "video_id": 7010, "question": "q?", "answer": "a"}
        (tmp_path / name).write_text(json.dumps([row | {"category_id": 1}]))

    write("test_qa.json", 170_859)
    assert list(read("msrvtt_qa", tmp_path, allow_partial=True)) == ["test"]
    (tmp_path / "test_qa.json").unlink()
    write("train_qa.json", 158_581)
    with pytest.raises(AnnotationError, match="split train, but the .* numbers are .* validation"):
        read("msrvtt_qa", tmp_path, allow_partial=True)
    write("train_qa.json", 10**9)
    with pytest.raises(AnnotationError, match="are of no one split"):
        read("msrvtt_qa", tmp_path, allow_partial=True)


def test_files_of_another_dataset_or_format_are_refused(published, pair, tmp_path):
    folder = published("activitynet_qa", 10, 2)
    with pytest.raises(AnnotationError, match="expected msvd_qa .*are activitynet"):
        read("msvd_qa", folder, allow_partial=True)
    folder = published("msvd_qa", 10, 2)
    with pytest.raises(AnnotationError, match="expected msrvtt_qa .*are zero_shot, of msvd_qa"):
        read("msrvtt_qa", folder, allow_partial=True)
    folder = pair("test", ["my own"], ["first"])
    with pytest.raises(AnnotationError, match="expected msrvtt_qa .*are zero_shot, of "):
        read("msrvtt_qa", folder, allow_partial=True)
    rows = [{"q": "What?", "a": "That.", "video_id": "v"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(AnnotationError, match="expected llava_videos .*are video_instruct"):
        read("llava_videos", tmp_path)


@pytest.mark.parametrize("dataset", SOURCES)
def test_an_empty_folder_says_what_belongs_there(dataset, tmp_path):
    source = SOURCES[dataset]
    (tmp_path / "other.json").write_text("[]")
    for alternatives in source.files.values():
        with pytest.raises(AnnotationError, match=f"no annotations of {dataset}") as caught:
            read(dataset, tmp_path)
        assert all(" + ".join(names) in str(caught.value) for names in alternatives)


@pytest.mark.parametrize("dataset", SOURCES)
def test_the_instructions_name_every_file(dataset):
    instructions = SOURCES[dataset].instructions
    names = [n for several in SOURCES[dataset].files.values() for names in several for n in names]
    assert all(name in instructions and name[-4:] in ("json", ".csv") for name in names)


def test_the_instructions_of_video_chatgpt_are_the_train_split(tmp_path):
    rows = [{"q": f"What {n}?", "a": "That.", "video_id": f"v_{n % 2:011d}"} for n in range(3)]
    (tmp_path / "VideoInstruct100K.json").write_text(json.dumps(rows))
    facts = read("video_instruct_100k", tmp_path)["train"].facts
    assert (facts["questions"], facts["videos"], facts["published"]) == (3, 2, None)


def test_broken_rows_make_a_part_where_no_count_is_published(tmp_path):
    rows = [{"q": f"What {n}?", "a": "That." * (n > 0), "video_id": "v"} for n in range(3)]
    (tmp_path / "VideoInstruct100K.json").write_text(json.dumps(rows))
    lack = "video_instruct_100k train: 2 of 3 rows"
    with pytest.raises(AnnotationError, match=rf"only {lack} \(1 rows .*record 0 .*'a' must"):
        read("video_instruct_100k", tmp_path)
    facts = read("video_instruct_100k", tmp_path, allow_partial=True)["train"].facts
    assert (facts["questions"], facts["partial"]) == (2, lack)


def test_half_a_pair_is_refused(pair):
    folder = pair("test", ["video6513"], ["158581"])
    (folder / "test_a.json").unlink()
    with pytest.raises(AnnotationError, match="test_a.json: cannot be read"):
        read("msrvtt_qa", folder, allow_partial=True)


@pytest.fixture
def with_store(videos, tmp_path):
    """A folder with the frames of v_AAAAAAAAAAA.mp4 and sub/v7.mp4, of which BAD is broken."""
    paths = {"v_AAAAAAAAAAA.mp4": videos["v1.mp4"], "sub/v7.mp4": videos["v7.mp4"]}
    write_store(
        tmp_path / "frames", paths | {"bad.mp4": videos["v8.mp4"]}, StoreOptions(short_side=None)
    )
    return tmp_path


def llava(folder, names):
    asked = {"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "That."}
    records = [{"id": n, "video": name, "conversations": asked} for n, name in enumerate(names)]
    (folder / "train.json").write_text(json.dumps(records))


def test_videos_get_the_names_of_the_store_beside_them(with_store):
    llava(with_store, ["AAAAAAAAAAA", "v_AAAAAAAAAAA", "v7", "sub/v7.mp4"])
    split = read("llava_videos", with_store)["train"]
    assert [c.video for c in split.examples] == [
        *(["v_AAAAAAAAAAA.mp4"] * 2),
        *(["sub/v7.mp4"] * 2),
    ]
    assert split.facts["videos"] == 2 and not split.facts["partial"]


def test_videos_that_are_not_stored_make_a_part(with_store):
    llava(with_store, ["v7", "bad.mp4", "gone"])
    with pytest.raises(AnnotationError, match="2 of 3 are about videos that are not stored"):
        read("llava_videos", with_store)
    split = read("llava_videos", with_store, allow_partial=True)["train"]
    assert [c.video for c in split.examples] == ["sub/v7.mp4"]
    assert "2 of 3" in split.facts["partial"]


def test_what_a_preparation_recorded_as_a_part_stays_one(with_store):
    llava(with_store, ["v7"])
    lacks = {"partial": ["msvd_qa validation: 1 of 6,415 questions"]}
    (with_store / "train.info.json").write_text(json.dumps(lacks))
    with pytest.raises(AnnotationError, match="only msvd_qa validation: 1 of 6,415"):
        read("llava_videos", with_store)
    split = read("llava_videos", with_store, allow_partial=True)["train"]
    assert split.facts["partial"] == lacks["partial"][0]


def test_a_folder_of_frames_without_a_store_is_refused(with_store):
    llava(with_store, ["v7"])
    (with_store / "frames" / "index.json").unlink()
    with pytest.raises(FrameStoreError, match="no index"):
        read("llava_videos", with_store)
