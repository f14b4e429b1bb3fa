"""Videos, questions and models made for a measurement: what they show and say changes no time."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import Template
from rvllm_jax.data.text.tokenizer import Tokenizer, train
from rvllm_jax.data.video import encode
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import RESNETS
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import Example, Turn, VisualLayout


def write_videos(
    folder: Path, number: int, *, length: int, height: int, width: int
) -> dict[str, Path]:
    """`number` files of `length` frames of a moving texture, 25 a second, by their names.

    Height and width, in pixels, are multiples of 8.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = {f"{n}.mp4": folder / f"{n}.mp4" for n in range(number)}
    for path in paths.values():
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(16, 0).repeat(16, 1)
        scene = (coarse + rng.integers(-16, 16, coarse.shape)).clip(0, 255).astype(np.uint8)
        frames = [scene[t % height :, 2 * t % width :][:height, :width] for t in range(length)]
        encode.write(path, np.stack(frames), fps=25)
    return paths


def make_examples(videos: Iterable[str], questions: Sequence[str]) -> list[Example]:
    """An example for each of the videos' names, all with the same questions."""
    turns = tuple(Turn(question, "A video.") for question in questions)
    return [Example(str(n), video, turns, "A video.") for n, video in enumerate(videos)]


def train_tokenizer(template: Template, examples: Sequence[Example]) -> Tokenizer:
    """A tokenizer with the examples' words as whole tokens, as a real vocabulary has them."""
    return train(prompt.texts(template, examples), 800)


def draw_model(
    encoder: str, frames: int, *, vocab: int, width: int, layers: int, mlp_width: int, context: int
) -> tuple[FunctionalModel, Arrays, Arrays]:
    """A model, small random float32 parameters, for which nothing is compiled, and statistics.

    Global visual tokens, of `frames` frames a clip; the decoder has heads of 64 numbers.
    """
    heads = width // 64
    decoder = LlamaConfig(vocab, width, layers, heads, heads, 64, mlp_width, context=context)
    layout = VisualLayout("global", frames)
    model = FunctionalModel.of(lambda rngs: VideoLLM(RESNETS[encoder], decoder, layout, rngs=rngs))
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith("/scale"):
            return jnp.ones(shape)
        return jnp.asarray(0.02 * rng.standard_normal(shape, np.float32))

    params = {path: draw(path, x.shape) for path, x in model.params.items()}
    return model, params, {path: jnp.ones(x.shape) for path, x in model.stats.items()}
