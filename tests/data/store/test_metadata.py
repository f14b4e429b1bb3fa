"""A frame store seen through TFDS: the same frames, times and names as through FrameStore."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvllm_jax.data.store import metadata, record
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import FrameStoreError, StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.system.file_layout import LayoutError

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=record.ENCODINGS)
def described(request, videos, tmp_path) -> Path:
    """A described store of the videos, in each encoding."""
    folder = tmp_path / "out" / "frames"
    options = StoreOptions(short_side=None, frames_per_record=4, encoding=request.param)
    write_store(folder, videos, options, shards=3)
    metadata.write_metadata(folder, data_dir=tmp_path / "out" / "tfds")
    return folder


def test_tfds_reads_what_the_store_reads(described):
    import tensorflow_datasets as tfds

    store = FrameStore(described)
    source = tfds.data_source("frames", split="videos", data_dir=described.parent / "tfds")
    seen: dict[str, int] = {}
    for example in (source[position] for position in range(len(source))):
        name, first, count = (
            example["video"].decode(),
            example["first_frame"],
            len(example["times"]),
        )
        assert first == seen.get(name, 0), "a video's records follow each other"
        seen[name] = first + count
        np.testing.assert_array_equal(
            example["times"], store.timestamps(name)[first : first + count]
        )
        frames = example["frames"]
        if store.options.encoding == "jpeg":
            size = store.entry(name).height, store.entry(name).width
            frames = [record.decode_jpeg(memoryview(data), size) for data in frames]
        indices = np.arange(first, first + count)
        np.testing.assert_array_equal(np.stack(list(frames)), store.read(name, indices))
    assert seen == {name: entry.num_frames for name, entry in store.entries.items()}


def test_the_description_stays_valid_where_the_folder_is_moved_to(described, tmp_path):
    import tensorflow_datasets as tfds

    moved = described.parent.rename(tmp_path / "moved")
    for folder in (moved / "frames", moved / "tfds" / "frames" / "1.0.0"):
        builder = tfds.builder_from_directory(folder)
        assert builder.info.splits["videos"].num_examples == len(builder.as_data_source("videos"))


def test_shards_are_untouched_and_writing_again_changes_nothing(described):
    before = {path.name: path.read_bytes() for path in described.iterdir()}
    metadata.write_metadata(described, data_dir=described.parent / "tfds")
    assert before == {path.name: path.read_bytes() for path in described.iterdir()}
    assert {"features.json", "dataset_info.json"} <= before.keys()


def test_a_folder_without_a_finished_store_is_refused(copy, tmp_path_factory):
    with pytest.raises(FrameStoreError, match="holds no index.*Prepare"):
        metadata.write_metadata(tmp_path_factory.mktemp("empty"))
    index = json.loads((copy / "index.json").read_bytes())
    (copy / "index.json").write_text(json.dumps(index | {"layout": 99}))
    with pytest.raises(LayoutError, match="layout 99, made by a newer version"):
        metadata.write_metadata(copy)
    assert not (copy / "dataset_info.json").exists()


def test_a_damaged_shard_and_an_occupied_place_are_named(copy, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    (data_dir / "frames" / "1.0.0").mkdir(parents=True)
    with pytest.raises(FrameStoreError, match="1.0.0: is there already"):
        metadata.write_metadata(copy, data_dir=data_dir)
    shard = next(copy.glob("frames-videos*"))
    shard.write_bytes(b"not a shard")
    with pytest.raises(FrameStoreError, match=f"{shard.name}: damaged .absent, or no records"):
        metadata.write_metadata(copy)


def test_importing_the_module_imports_no_tfds():
    program = (
        "import sys, rvllm_jax.data.store.metadata; print('tensorflow_datasets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
