"""Answering beside the peers' way: one question at a time, the video encoded again each time.

Both run the same model on the same stored videos in this process, in turns, both compiled; the
peers' way is what Video-ChatGPT's and Video-LLaVA's inference scripts do: batch one, every question
from the frames on. Of several clips it asks each apart, and the answers would vote; its calls are
all alike, so that `--calls` of them are timed and the rest is counted.

The sizes keep the paper's proportion. ResNet-50 on 100 frames of 224 pixels takes as many products
as 62 tokens of Vicuna-7B, and about 145 tokens of prefix follow: a video is read for the price of
about 210 tokens, beside some 20 of a question. ResNet-18 on 8 frames of 128 pixels takes as many as
175 tokens of a decoder with d=512 and 8 layers, and some 50 of prefix follow. That decoder's 108 MB
also fit no cache of a processor, as a real one's weights do not: a single row must wait for them.
"""

import argparse
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.data.annotations.example import Example, Turn
from rvllm_jax.data.batches.clips import VIEWS, FrameSampling
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.batches.loader import question_batches
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text import prompt
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import Tokenizer, train
from rvllm_jax.data.video import encode
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.grouping import Grouping
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import RESNETS
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.speed.generation import best_of
from rvllm_jax.types import VisualLayout

DESCRIPTION = "questions a second beside one question at a time, the video encoded each time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--encoder", default="resnet18", choices=sorted(RESNETS), help="the visual encoder")
    add("--width", type=int, default=512, help="of the decoder")
    add("--layers", type=int, default=8, help="of the decoder")
    add("--frames", type=int, default=8, help="of a clip")
    add("--side", type=int, default=128, help="pixels of a frame")
    add("--videos", type=int, default=2, help="videos")
    add("--questions", type=int, default=10, help="questions a video")
    add("--new", type=int, default=12, help="tokens of an answer")
    add("--clips", nargs="+", default=["1x1", "25x1"], choices=list(VIEWS), help="test clips")
    add("--calls", type=int, default=10, help="of the one-by-one way that are timed")
    add("--rounds", type=int, default=3, help="measurements of each")


def run(arguments: argparse.Namespace) -> str:
    """The report, as text."""
    with tempfile.TemporaryDirectory() as folder:
        store = _store(arguments, Path(folder))
        engine, examples = _engine(arguments)
        lines = [
            f"{arguments.encoder}, {arguments.frames} frames of {arguments.side} pixels; decoder "
            f"d={arguments.width}, {arguments.layers} layers; {arguments.questions} questions a "
            f"video, {arguments.new} tokens an answer at most; best of {arguments.rounds}",
            f"{'':24}{'questions/s':>12}  ratio",
        ]
        for clips in arguments.clips:
            dataset = _dataset(arguments, store, engine, examples, clips)
            lines += _compared(arguments, engine, dataset)
    return "\n".join(lines)


def _store(arguments, folder: Path) -> FrameStore:
    rng = np.random.default_rng(0)
    paths = {}
    for number in range(arguments.videos):
        paths[f"{number}.mp4"] = path = folder / f"{number}.mp4"
        shape = (arguments.frames * 6, 8, 8, 3)
        small = rng.integers(0, 256, shape, dtype=np.uint8)
        times = arguments.side // 8 + 1
        encode.write(path, small.repeat(times, 1).repeat(times, 2), fps=8)
    return write_store(folder / "store", paths, StoreOptions(short_side=arguments.side))


def _engine(arguments) -> tuple[Engine, list[Example]]:
    questions = [f"What does the shape number {n} do?" for n in range(arguments.questions)]
    turns = tuple(Turn(question, "-") for question in questions)
    examples = [
        Example(str(number), f"{number}.mp4", turns, "-") for number in range(arguments.videos)
    ]
    template = TEMPLATES["vicuna_v1"]
    # Its words as whole tokens, as a real vocabulary has them.
    prompts = [prompt.prompt_text(template, question) for question in questions]
    tokenizer: Tokenizer = train(prompts * 3, 800)
    layout = VisualLayout("global", arguments.frames)
    width, heads = arguments.width, arguments.width // 64
    config = LlamaConfig(
        tokenizer.vocab_size, width, arguments.layers, heads, heads, 64, 3 * width, context=512
    )

    def make(rngs: nnx.Rngs) -> VideoLLM:
        return VideoLLM(RESNETS[arguments.encoder], config, layout, rngs=rngs)

    model = FunctionalModel.of(make)
    params = _drawn(model.params)
    stats = {path: jnp.ones(x.shape) for path, x in model.stats.items()}
    how = GenerationConfig(max_new=arguments.new)
    return Engine(model.merge(params, stats), tokenizer, template, config=how), examples


def _drawn(shapes) -> Arrays:
    """Small random values: what they are changes no time, and nothing is compiled for them."""
    rng = np.random.default_rng(0)
    drawn = {path: 0.02 * rng.standard_normal(x.shape) for path, x in shapes.items()}
    return {path: jnp.asarray(x, jnp.float32) for path, x in drawn.items()}


def _dataset(arguments, store: FrameStore, engine: Engine, examples, clips) -> Dataset:
    options = DatasetOptions(
        VisualLayout("global", arguments.frames),
        FrameSampling(arguments.frames, step=1),
        crop=arguments.side,
        context=engine.context,
        views=clips,
    )
    return Dataset(examples, store, engine.tokenizer, engine.template, options)


def _compared(arguments, engine: Engine, dataset: Dataset) -> list[str]:
    count = len(dataset.questions)
    ours = Grouping(dataset, videos=arguments.videos, together=arguments.questions)
    theirs = Grouping(dataset, videos=1, together=1)
    # One clip a batch: what is several rows of a group for us are as many calls for them.
    rows = [row for row in theirs.rows(theirs.batches()) if row.video >= 0]
    calls = rows[: arguments.calls]

    def our_way():
        return list(engine.predict(ours))

    def their_way():
        for questions in question_batches(dataset, calls, batch=1, max_questions=1):
            engine.tokens(questions)

    best = best_of(arguments.rounds, ours=our_way, theirs=their_way)
    best["theirs"] *= len(rows) / len(calls)
    title = f"{len(rows) // count} clips a video" if len(rows) > count else "1 clip a video"
    ratio = best["theirs"] / best["ours"]
    return [
        f"{f'{title}, one by one':24}{count / best['theirs']:12.3f}  1.0",
        f"{f'{title}, ours':24}{count / best['ours']:12.3f}  {ratio:.1f}",
    ]
