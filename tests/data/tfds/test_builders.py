"""The datasets that TFDS builds of annotations, read again by TFDS and by us."""

import json
import pickle
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.annotations.read import read
from rvllm_jax.data.shapes import build as shapes
from rvllm_jax.data.tfds import builder as builders
from rvllm_jax.data.tfds.datasets import DATASETS
from rvllm_jax.system.lock import LockError, locked
from rvllm_jax.types import Example, Turn

SAMPLES = Path(__file__).parents[3].parent / "shared/data/annotations"
NAMES = [*(dataset.name for dataset in DATASETS), "shapes"]
# dataset -> (folder of the samples, split, its files)
SPLITS = {
    "msvd_qa": ("msvd_qa", "validation", ["test_q.json", "test_a.json"]),
    "msrvtt_qa": ("msrvtt_qa", "validation", ["test_q.json", "test_a.json"]),
    "tgif_frameqa": ("tgif_qa", "test", ["Test_frameqa_question.csv"]),
    "activitynet_qa": ("activitynet_qa", "test", ["test_q.json", "test_a.json"]),
    "video_text_generation": ("video_text_generation", "consistency", ["consistency_qa.json"]),
}


def build(name: str, data_dir: Path, manual_dir: Path | None = None, **options):
    builder = tfds.builder(name, data_dir=data_dir)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, **options)
    builder.download_and_prepare(download_config=config)
    return builder


def examples(folder: Path, split: str) -> list[Example]:
    """What TFDS reads of a built dataset, in order."""
    source = tfds.builder_from_directory(folder).as_data_source(split)
    return [_example(source[number]) for number in range(len(source))]


def _example(row: dict) -> Example:
    columns = ([t.decode() for t in row["turns"][key]] for key in ("question", "answer", "kind"))
    turns = tuple(Turn(*texts) for texts in zip(*columns, strict=True))
    video = row["video"].decode("utf-8", "surrogateescape")
    return Example(row["id"].decode(), video, turns, row["caption"].decode())


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES}: the samples are not there")
@pytest.mark.parametrize("name", SPLITS)
def test_real_rows_come_back_in_order_from_a_dataset_that_says_it_is_a_part(name, tmp_path):
    folder, split, files = SPLITS[name]
    with pytest.raises(AnnotationError, match=f"build {name}/partial"):
        build(name, tmp_path, SAMPLES / folder)
    builder = build(f"{name}/partial", tmp_path, SAMPLES / folder)
    rows = read([SAMPLES / folder / file for file in files]).examples
    assert examples(builder.data_dir, split) == rows
    assert builder.info.full_name == f"{name}/partial/1.0.0"
    facts = builder.info.metadata["splits"][split]
    assert f"{len(rows):,} of" in facts["partial"] and facts["questions"] == len(rows)
    source = tfds.data_source(f"{name}/partial", split=split, data_dir=tmp_path)
    assert len(source) == len(rows) and source[0]["id"].decode() == rows[0].id


def test_a_whole_dataset_lacks_nothing(published, tmp_path):
    folder = published("video_text_generation/temporal", 499, 499)
    builder = build("video_text_generation", tmp_path / "data", folder)
    assert builder.info.full_name == "video_text_generation/full/1.0.0"
    assert list(builder.info.splits) == ["temporal"]
    written = tfds.builder_from_directory(builder.data_dir).info.metadata["splits"]
    assert written["temporal"]["partial"] == "" and written["temporal"]["questions"] == 499


def test_any_file_name_and_several_turns_come_back(tmp_path):
    name = b"caf\xe9 \xc3\xa9.mp4".decode("utf-8", "surrogateescape")
    messages = [
        {"from": "human", "value": "<video>\nWhat?", "type": "form"},
        {"from": "gpt", "value": "That."},
        {"from": "human", "value": "And this?"},
        {"from": "gpt", "value": "Ünïcode."},
    ]
    record = {"id": 7, "video": "a é.mp4", "caption": "Both.", "conversations": messages}
    (tmp_path / "validation.json").write_text(json.dumps([record]))
    builder = build("llava_videos", tmp_path / "data", tmp_path)
    (only,) = examples(builder.data_dir, "validation")
    assert [only] == read([tmp_path / "validation.json"]).examples
    assert [turn.kind for turn in only.turns] == ["form", ""]
    example = next(builder._generate_examples([Example(only.id, name, only.turns, "")]))
    assert example[1]["video"] == b"caf\xe9 \xc3\xa9.mp4"


def test_shapes_are_those_of_the_embedded_dataset(tmp_path, monkeypatch):
    sizes = {"train": 5, "heldout": 3}
    monkeypatch.setattr(builders.Shapes, "SIZES", sizes)
    builder = build("shapes", tmp_path / "data")
    paths = shapes.build(tmp_path / "shapes", sizes=sizes)
    for split, path in paths.items():
        rows = read([path]).examples
        assert examples(builder.data_dir, split) == rows


def test_no_part_is_built_that_does_not_say_so(published, tmp_path):
    folder = published("video_text_generation/temporal", 499, 499)
    with pytest.raises(AnnotationError, match="max_examples_per_split"):
        build("video_text_generation", tmp_path / "data", folder, max_examples_per_split=10)
    assert not list((tmp_path / "data").rglob("*record*"))


def test_a_refused_build_leaves_no_dataset(published, tmp_path):
    published("video_text_generation/generic", 1_996, 499)
    folder = published("video_text_generation/temporal", 10, 10)
    with pytest.raises(AnnotationError, match="10 of 499"):
        build("video_text_generation", tmp_path / "data", folder)
    assert not list((tmp_path / "data").rglob("*record*"))


def test_a_built_dataset_is_read_in_other_processes(published, tmp_path):
    """As Grain's workers do, which are sent it."""
    folder = published("video_text_generation/temporal", 499, 499)
    source = build("video_text_generation", tmp_path / "data", folder).as_data_source("temporal")
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 499 and copy[498]["turns"]["question"] == source[498]["turns"]["question"]


@pytest.mark.parametrize("name", NAMES)
def test_a_builder_is_named_as_its_dataset_and_is_ready_for_its_store(name, tmp_path):
    cls = tfds.builder_cls(name)
    assert cls.name == name and getattr(builders, cls.__name__) is cls
    builder = cls(data_dir=tmp_path)
    assert builder.info.disable_shuffling and builder.info.file_format.value == "array_record"
    assert "frame store" in builder.info.description


def test_one_process_builds_a_dataset_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(builders.Shapes, "SIZES", {"train": 2})
    with locked(tmp_path / "shapes"), pytest.raises(LockError, match="or name another --data_dir"):
        build("shapes", tmp_path)
    built = Path(build("shapes", tmp_path).data_dir)
    assert [path.name for path in built.parent.iterdir()] == ["1.0.0"]
    with locked(tmp_path / "shapes"):  # what is built is read
        build("shapes", tmp_path)
