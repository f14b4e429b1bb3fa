"""TFDS builders of the annotations: `tfds build --imports=rvllm_jax.data.tfds NAME ...`.

Each builds a small dataset of examples that name videos of a frame store; the frames stay in
the store. Importing this package registers them all, and imports tensorflow_datasets.
"""

from rvllm_jax.data.tfds.activitynet_qa import ActivitynetQa
from rvllm_jax.data.tfds.llava_videos import LlavaVideos
from rvllm_jax.data.tfds.msrvtt_qa import MsrvttQa
from rvllm_jax.data.tfds.msvd_qa import MsvdQa
from rvllm_jax.data.tfds.shapes import Shapes
from rvllm_jax.data.tfds.tgif_frameqa import TgifFrameqa
from rvllm_jax.data.tfds.video_instruct_100k import VideoInstruct100k
from rvllm_jax.data.tfds.video_text_generation import VideoTextGeneration

__all__ = [
    "ActivitynetQa", "LlavaVideos", "MsrvttQa", "MsvdQa", "Shapes", "TgifFrameqa",
    "VideoInstruct100k", "VideoTextGeneration",
]  # fmt: skip
