"""Conversations about a user's own videos, in LLaVA's JSON."""

from rvllm_jax.data.tfds.builder import FilesBuilder
from rvllm_jax.data.tfds.splits import TfdsDataset


class LlavaVideos(FilesBuilder):
    """Splits train, validation, test and heldout, as the files are called."""

    name = "llava_videos"
    ABOUT = "Conversations about a user's own videos, in the form of LLaVA and Video-LLaVA."
    HOMEPAGE = "https://github.com/PKU-YuanGroup/Video-LLaVA"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
The folder given by --manual_dir holds one or more of train.json, validation.json, test.json and
heldout.json, lists of LLaVA's records {"id", "video", "conversations"}: what a preparation of
videos leaves, or your own.

Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""
    SOURCE = TfdsDataset(
        dataset="llava_videos",
        files={
            split: ((f"{split}.json",),) for split in ("train", "validation", "test", "heldout")
        },
        formats=("llava",),
    )
