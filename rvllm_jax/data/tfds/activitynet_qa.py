"""ActivityNet-QA: questions about long videos of activities."""

from rvllm_jax.data.tfds.builder import FilesBuilder
from rvllm_jax.data.tfds.splits import TfdsDataset


class ActivitynetQa(FilesBuilder):
    """Splits train, validation and test; see MANUAL_DOWNLOAD_INSTRUCTIONS."""

    name = "activitynet_qa"
    ABOUT = (
        "ActivityNet-QA: questions written by people about ActivityNet's videos (Yu et al., 2019)."
    )
    HOMEPAGE = "https://github.com/MILVLG/activitynet-qa"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
The folder given by --manual_dir holds, for each split to be built, its pair of files from
https://github.com/MILVLG/activitynet-qa/tree/master/dataset:
  train       train_q.json and train_a.json
  validation  val_q.json and val_a.json
  test        test_q.json and test_a.json

Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""
    SOURCE = TfdsDataset(
        dataset="activitynet_qa",
        files={
            "train": (("train_q.json", "train_a.json"),),
            "validation": (("val_q.json", "val_a.json"),),
            "test": (("test_q.json", "test_a.json"),),
        },
        formats=("activitynet",),
        benchmarks={split: ("activitynet_qa", split) for split in ("train", "validation", "test")},
    )
