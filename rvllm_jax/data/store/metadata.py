"""A store's metadata: the two files by which `tfds.data_source` reads its shards as they lie.

features.json and dataset_info.json. TFDS did not build the store and needs not to: the shards have
TFDS's names and hold `tf.train.Example` records (record.py), so that these two suffice. The
project's own reader uses neither.
"""

import os
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from rvllm_jax.data.store.reader import FrameStore, damaged
from rvllm_jax.data.store.shards import FrameStoreError
from rvllm_jax.system.atomic import make_folder, read_json_or_empty
from rvllm_jax.system.errors import AGAIN

NAME, SPLIT, VERSION = "frames", "videos", "1.0.0"  # the first two as in the shards' names

DESCRIPTION = (
    "Frames of videos, decoded once: a record holds a few successive frames of one video and the "
    "time at which each is shown, in seconds. Records of a video that was set aside while its "
    "shard was written may be among them; index.json beside this file names what is whole."
)


def write_metadata(folder: str | Path, *, data_dir: str | Path | None = None) -> None:
    """Writes features.json and dataset_info.json beside the shards of a finished frame store.

    Afterwards `tfds.builder_from_directory(folder).as_data_source("videos")` reads it, without
    TensorFlow: "video" bytes, "first_frame" int64, "times" float64[n] in seconds, and "frames"
    uint8[n, h, w, 3] of a raw store, or n JPEG files, bytes.

    Args:
        folder: the store.
        data_dir: where to link the store as frames/1.0.0, the place in which
            `tfds.data_source("frames", split="videos", data_dir=data_dir)` looks for it.

    Raises:
        FrameStoreError: `folder` holds no finished store, or cannot be written.
    """
    store = FrameStore(folder)
    counts = [_num_records(path) for path in store.files]
    import tensorflow_datasets as tfds  # takes seconds: only where it is used

    # TFDS would count them itself, but through TensorFlow.
    split = tfds.core.SplitInfo(name=SPLIT, shard_lengths=counts, num_bytes=store.num_bytes)
    try:
        tfds.folder_dataset.write_metadata(
            data_dir=os.fspath(folder),
            features=features(store.options.encoding),
            split_infos=[split],
            version=VERSION,
            description=DESCRIPTION,
            disable_shuffling=True,
            check_data=False,  # reads through TensorFlow
        )
        if data_dir is not None:
            _link(Path(data_dir) / NAME / VERSION, store.folder)
    except OSError as error:
        raise FrameStoreError(
            f"{folder}: its description for TFDS cannot be written ({error}). {AGAIN}: "
            "finished shards are kept"
        ) from error


def is_described(folder: str | Path, *, data_dir: str | Path) -> bool:
    """Whether `write_metadata` has done its work, whole, for these arguments."""
    texts = [
        read_json_or_empty(Path(folder) / name) for name in ("features.json", "dataset_info.json")
    ]
    place = Path(data_dir) / NAME / VERSION
    return all(texts) and place.is_symlink() and os.path.realpath(place) == os.path.realpath(folder)


def _link(place: Path, folder: Path) -> None:
    """Makes `place` a link to `folder`, relative, so that both can be moved together."""
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        raise FrameStoreError(f"{place}: is there already, and no link; choose another data_dir")
    make_folder(place.parent)
    place.symlink_to(os.path.relpath(folder.resolve(), place.parent.resolve()))


def _num_records(path: Path) -> int:
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    if not reader.ok():  # and reports 0 records
        raise damaged(path, "absent, or no records")
    return reader.num_records()


def features(encoding: str):
    """The `tfds.features.FeaturesDict` of a record (data/store/record.py) of this encoding."""
    import tensorflow_datasets as tfds

    if encoding == "raw":
        frames = tfds.features.Tensor(shape=(None, None, None, 3), dtype=np.uint8, encoding="bytes")
    else:
        frames = tfds.features.Sequence(tfds.features.Scalar(np.object_))
    times = tfds.features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes")
    return tfds.features.FeaturesDict(
        {
            "layout": np.int64,
            "video": tfds.features.Text(),
            "first_frame": np.int64,
            "times": times,
            "frames": frames,
        }
    )
