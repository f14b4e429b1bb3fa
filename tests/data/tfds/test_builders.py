"""The datasets that TFDS builds of annotations, read again by TFDS and by us."""

import json
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from rvllm_jax.data import annotations
from rvllm_jax.data import tfds as builders
from rvllm_jax.data.annotations.example import AnnotationError
from rvllm_jax.data.shapes import build as shapes
from rvllm_jax.data.tfds.built import read_built

SAMPLES = Path(__file__).parents[3].parent / "shared/data/annotations"
CLASSES = {cls.name: cls for cls in map(vars(builders).get, builders.__all__)}
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


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES}: the samples are not there")
@pytest.mark.parametrize("name", SPLITS)
def test_real_rows_come_back_in_order_from_a_dataset_that_says_it_is_a_part(name, tmp_path):
    folder, split, files = SPLITS[name]
    with pytest.raises(AnnotationError, match=f"build {name}/partial"):
        build(name, tmp_path, SAMPLES / folder)
    builder = build(f"{name}/partial", tmp_path, SAMPLES / folder)
    rows = annotations.read([SAMPLES / folder / file for file in files]).examples
    built = read_built(builder.data_dir, split)
    assert built.examples == rows
    provenance = built.provenance
    assert provenance["dataset"] == f"{name}/partial/1.0.0" and provenance["split"] == split
    assert f"{len(rows):,} of" in provenance["partial"]
    assert provenance["questions"] == len(rows)
    source = tfds.data_source(f"{name}/partial", split=split, data_dir=tmp_path)
    assert len(source) == len(rows) and source[0]["id"].decode() == rows[0].id


def test_a_whole_dataset_lacks_nothing(published, tmp_path):
    folder = published("video_text_generation/temporal", 499, 499)
    builder = build("video_text_generation", tmp_path / "data", folder)
    assert builder.info.full_name == "video_text_generation/full/1.0.0"
    assert list(builder.info.splits) == ["temporal"]
    assert read_built(builder.data_dir, "temporal").provenance["partial"] == ""


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
    (only,) = read_built(builder.data_dir, "validation").examples
    (read,) = annotations.read([tmp_path / "validation.json"]).examples
    assert only == read and [turn.kind for turn in only.turns] == ["form", ""]
    example = next(builder._generate_examples([read.__class__(read.id, name, read.turns, "")]))
    assert example[1]["video"] == b"caf\xe9 \xc3\xa9.mp4"


def test_shapes_are_those_of_the_embedded_dataset(tmp_path, monkeypatch):
    sizes = {"train": 5, "heldout": 3}
    monkeypatch.setattr(builders.Shapes, "SIZES", sizes)
    builder = build("shapes", tmp_path / "data")
    paths = shapes.build(tmp_path / "shapes", sizes=sizes)
    for split, path in paths.items():
        rows = annotations.read([path]).examples
        assert read_built(builder.data_dir, split).examples == rows


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


def test_a_split_that_is_not_there_and_a_folder_of_something_else_are_refused(published, tmp_path):
    folder = published("video_text_generation/temporal", 499, 499)
    builder = build("video_text_generation", tmp_path / "data", folder)
    for split in ("test", "temporal[:5]"):
        with pytest.raises(AnnotationError, match="has the splits temporal, none is called"):
            read_built(builder.data_dir, split)
    with pytest.raises(AnnotationError, match="holds no built dataset"):
        read_built(tmp_path, "temporal")


@pytest.mark.parametrize("name", CLASSES)
def test_a_builder_is_named_as_its_file_and_is_ready_for_its_store(name, tmp_path):
    cls = CLASSES[name]
    assert cls.__module__ == f"rvllm_jax.data.tfds.{name}"
    builder = cls(data_dir=tmp_path)
    assert builder.info.disable_shuffling and builder.info.file_format.value == "array_record"
    assert "frame store" in builder.info.description
