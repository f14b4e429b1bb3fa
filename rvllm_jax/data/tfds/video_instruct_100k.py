"""VideoInstruct100K: Video-ChatGPT's instructions about ActivityNet's videos."""

from rvllm_jax.data.tfds.builder import FilesBuilder
from rvllm_jax.data.tfds.splits import TfdsDataset


class VideoInstruct100k(FilesBuilder):
    """The split train; see MANUAL_DOWNLOAD_INSTRUCTIONS."""

    name = "video_instruct_100k"
    ABOUT = (
        "VideoInstruct100K: questions and detailed answers about ActivityNet's videos, written by "
        "people and by language models (Maaz et al., 2023)."
    )
    HOMEPAGE = "https://huggingface.co/datasets/MBZUAI/VideoInstruct-100K"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
The folder given by --manual_dir holds VideoInstruct100K.json, from
https://huggingface.co/datasets/MBZUAI/VideoInstruct-100K. No counts are checked.

Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""
    SOURCE = TfdsDataset(
        dataset="video_instruct_100k",
        files={
            "train": (("VideoInstruct100K.json",),),
        },
        formats=("video_instruct",),
    )
