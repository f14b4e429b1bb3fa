"""TFDS builders of the annotations: `tfds build --imports=rvllm_jax.data.builders NAME ...`.

Each builds a small dataset of conversations that name videos of a frame store; the frames stay in
the store. Importing this package registers them all, and imports tensorflow_datasets.
"""

from rvllm_jax.data.builders.activitynet_qa import ActivitynetQa
from rvllm_jax.data.builders.llava_videos import LlavaVideos
from rvllm_jax.data.builders.msrvtt_qa import MsrvttQa
from rvllm_jax.data.builders.msvd_qa import MsvdQa
from rvllm_jax.data.builders.shapes import Shapes
from rvllm_jax.data.builders.tgif_frameqa import TgifFrameqa
from rvllm_jax.data.builders.video_instruct_100k import VideoInstruct100k
from rvllm_jax.data.builders.video_text_generation import VideoTextGeneration

__all__ = [
    "ActivitynetQa", "LlavaVideos", "MsrvttQa", "MsvdQa", "Shapes", "TgifFrameqa",
    "VideoInstruct100k", "VideoTextGeneration",
]  # fmt: skip
