"""Video-ChatGPT's benchmark of generated answers: generic, temporal and consistency."""

from rvllm_jax.data.tfds.builder import FilesBuilder
from rvllm_jax.data.tfds.splits import TfdsDataset


class VideoTextGeneration(FilesBuilder):
    """Splits generic, temporal and consistency; see MANUAL_DOWNLOAD_INSTRUCTIONS."""

    name = "video_text_generation"
    ABOUT = (
        "Video-ChatGPT's benchmark of free answers about ActivityNet's videos, to be judged by a "
        "language model (Maaz et al., 2023). A consistency example asks one thing in two ways."
    )
    HOMEPAGE = "https://github.com/mbzuai-oryx/Video-ChatGPT"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
The folder given by --manual_dir holds, for each split to be built, its file of Video-ChatGPT's
quantitative evaluation (https://github.com/mbzuai-oryx/Video-ChatGPT, "Video-based Generative
Performance Benchmarking"):
  generic      generic_qa.json
  temporal     temporal_qa.json
  consistency  consistency_qa.json

Where the folder also holds a frame store of the videos as `frames` (or a link to it), the videos
get the names that they have there, and those that are not in it are missing.
"""
    SOURCE = TfdsDataset(
        dataset="video_text_generation",
        files={
            "generic": (("generic_qa.json",),),
            "temporal": (("temporal_qa.json",),),
            "consistency": (("consistency_qa.json",),),
        },
        formats=("generative", "consistency"),
        benchmarks={
            kind: (f"video_text_generation/{kind}", "test")
            for kind in ("generic", "temporal", "consistency")
        },
    )
