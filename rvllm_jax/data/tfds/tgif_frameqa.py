"""TGIF-QA's FrameQA: questions about animated GIFs."""

from rvllm_jax.data.tfds.builder import FilesBuilder
from rvllm_jax.data.tfds.splits import TfdsDataset


class TgifFrameqa(FilesBuilder):
    """Splits train and test; see MANUAL_DOWNLOAD_INSTRUCTIONS."""

    name = "tgif_frameqa"
    ABOUT = (
        "FrameQA of TGIF-QA: questions about animated GIFs that one frame answers, by a word "
        "(Jang et al., 2017)."
    )
    HOMEPAGE = "https://github.com/YunseokJANG/tgif-qa"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
The folder given by --manual_dir holds, for each split to be built, its table from
https://github.com/YunseokJANG/tgif-qa/tree/master/dataset, or Video-ChatGPT's pair of files:
  train  Train_frameqa_question.csv
  test   Test_frameqa_question.csv, or test_q.json and test_a.json

Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""
    SOURCE = TfdsDataset(
        dataset="tgif_frameqa",
        files={
            "train": (("Train_frameqa_question.csv",),),
            "test": (("Test_frameqa_question.csv",), ("test_q.json", "test_a.json")),
        },
        formats=("tgif", "zero_shot"),
        benchmarks={split: ("tgif_frameqa", split) for split in ("train", "test")},
    )
