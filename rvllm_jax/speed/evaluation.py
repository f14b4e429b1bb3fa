"""Answering beside the peers' way: one question at a time, the video encoded again each time.

Both run the same model on the same stored videos in this process, both compiled; the
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
from collections.abc import Sequence
from pathlib import Path

from rvllm_jax.data.batches.clips import VIEWS, FrameSampling
from rvllm_jax.data.batches.dataset import Dataset, DatasetOptions
from rvllm_jax.data.batches.loader import question_batches
from rvllm_jax.data.store.reader import FrameStore
from rvllm_jax.data.store.shards import StoreOptions
from rvllm_jax.data.store.writer import write_store
from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.grouping import Grouping
from rvllm_jax.generation.sampling import GenerationConfig
from rvllm_jax.models.resnet import RESNETS
from rvllm_jax.speed import measure
from rvllm_jax.speed.synthetic import draw_model, make_examples, train_tokenizer, write_videos
from rvllm_jax.types import Example, VisualLayout

DESCRIPTION = "questions a second beside one question at a time, the video encoded each time"
COLUMNS = measure.Columns(30, {"questions/s": "12.3f", "ratio": "7.1f"})


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
    measure.add_arguments(parser, rounds=3)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report."""
    yield (
        f"{arguments.encoder}, {arguments.frames} frames of {arguments.side} pixels; decoder "
        f"d={arguments.width}, {arguments.layers} layers; {arguments.questions} questions a "
        f"video, {arguments.new} tokens an answer at most; best of {arguments.rounds}"
    )
    yield COLUMNS.head
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        store = _store(arguments, Path(folder))
        questions = [f"What does the shape number {n} do?" for n in range(arguments.questions)]
        examples = make_examples(store.entries, questions)
        engine = _engine(arguments, examples)
        for clips in arguments.clips:
            options = DatasetOptions(
                VisualLayout("global", arguments.frames),
                FrameSampling(arguments.frames, step=1),
                crop=arguments.side,
                context=engine.context,
                views=clips,
            )
            dataset = Dataset(examples, store, engine.tokenizer, engine.template, options)
            figures[clips] = yield from _compare(arguments, engine, dataset)
    return {"questions": arguments.videos * arguments.questions, "rounds": figures}


def _store(arguments, folder: Path) -> FrameStore:
    side = -(-arguments.side // 8) * 8
    size = dict(length=6 * arguments.frames, height=side, width=side)
    paths = write_videos(folder / "videos", arguments.videos, **size)
    return write_store(folder / "store", paths, StoreOptions(short_side=arguments.side))


def _engine(arguments, examples: Sequence[Example]) -> Engine:
    template = TEMPLATES["vicuna_v1"]
    tokenizer = train_tokenizer(template, examples)
    model, params, stats = draw_model(
        arguments.encoder,
        arguments.frames,
        vocab=tokenizer.vocab_size,
        width=arguments.width,
        layers=arguments.layers,
        mlp_width=3 * arguments.width,
        context=512,
    )
    config = GenerationConfig(max_new=arguments.new)
    return Engine(model.merge(params, stats), tokenizer, template, config=config)


def _compare(arguments, engine: Engine, dataset: Dataset) -> measure.Report:
    """Two lines; returns the rounds' seconds for all questions, of each way."""
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

    rounds = measure.time_calls(arguments.rounds, theirs=their_way, ours=our_way)
    for seconds in rounds:
        seconds["theirs"] *= len(rows) / len(calls)
    title = f"{len(rows) // count} clips a video" if len(rows) > count else "1 clip a video"
    baseline = measure.best(rounds, "theirs")
    for name, way in (("theirs", "one by one"), ("ours", "ours")):
        best = measure.best(rounds, name)
        yield COLUMNS.line(f"{title}, {way}", count / best, baseline / best)
    return rounds
