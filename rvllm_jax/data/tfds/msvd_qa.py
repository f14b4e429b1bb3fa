"""MSVD-QA: open-ended questions about short clips of YouTube videos."""

from rvllm_jax.data.tfds.builder import FilesBuilder
from rvllm_jax.data.tfds.splits import numbered_source


class MsvdQa(FilesBuilder):
    """Splits train, validation and test; see MANUAL_DOWNLOAD_INSTRUCTIONS."""

    name = "msvd_qa"
    ABOUT = (
        "MSVD-QA: questions made from the captions of MSVD's clips, answered by a word (Xu et al., "
        "2017)."
    )
    HOMEPAGE = "https://github.com/xudejing/video-question-answering"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
The folder given by --manual_dir holds, for each split to be built, either the original file or
Video-ChatGPT's pair of files:
  train       train_qa.json, or train_q.json and train_a.json
  validation  val_qa.json, or val_q.json and val_a.json
  test        test_qa.json, or test_q.json and test_a.json
The original ones are published at https://github.com/xudejing/video-question-answering, with
youtube_mapping.txt, which belongs beside them; the pairs with Video-ChatGPT's quantitative
evaluation. A pair's split is read from the numbers of its questions: the one that Video-ChatGPT
calls test holds the validation split.

Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""
    SOURCE = numbered_source("msvd_qa")
