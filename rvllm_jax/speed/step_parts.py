"""The programs whose times `bench step` takes: each stage's update, and its parts alone.

Values are random, and change no time; the sequences are filled to their end.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import ConfigError
from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.data.batches.packing import pack_sequence, prefix
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.models.resnet import ResNet
from rvllm_jax.models.video_llm import normalise
from rvllm_jax.planning import abstract
from rvllm_jax.planning.abstract import step_costs
from rvllm_jax.sharding import layouts
from rvllm_jax.sharding.constrain import join_frames
from rvllm_jax.training.stages import StageSetup, build_layout, prepare_stage
from rvllm_jax.training.state import StageArrays, StatePlacement
from rvllm_jax.training.step import compile_update, make_loss
from rvllm_jax.types import Batch

ENCODER, DECODER, EVALUATION = "encoder alone", "decoder alone", "evaluation"


class Started(NamedTuple):
    """A program that is compiled and has its arrays."""

    call: Callable[[], None]  # one call, to its end
    compiling: float  # seconds
    memory: int  # bytes a device, of arguments and temporaries; 0: the compiler does not say


class Part(NamedTuple):
    """A program to be measured; `start` draws its arrays and compiles it."""

    name: str
    clips: int  # of a call
    flops: float  # of a call, by formula, without recomputation
    start: Callable[[], Started]


def question_length(recipe: Recipe) -> int:
    """Tokens of a question in a full sequence. ConfigError where that is too short for them."""
    V, L, Q = recipe.layout.tokens, recipe.data.context, recipe.data.questions
    length = (L - V) // Q
    if length < 2:
        raise ConfigError(
            f"config.data.context={L} leaves {L - V} places behind {V} visual tokens, too few for "
            f"config.data.questions={Q} questions of two tokens or more; raise the one or lower "
            "the other"
        )
    return length


def draw_batch(recipe: Recipe, stage: Stage, seed: int = 0) -> Batch:
    """A full batch: random frames, and config.data.questions segments of equal length a sequence.

    The prefix is the video's tokens alone, or as many of a caption. ConfigError where the sequences
    are too short for that.
    """
    rng = np.random.default_rng(seed)
    shapes, length = abstract.batch(recipe, stage), question_length(recipe)

    def draw(count: int) -> np.ndarray:
        return rng.integers(3, recipe.llama.vocab_size, count, np.int32)

    sequences = []
    for _ in range(stage.batch):
        if stage.input == "video":
            head = prefix((), (), visual=recipe.layout.filled(recipe.data.frames))
        else:
            head = prefix((), (), text=draw(recipe.layout.tokens))
        segments = [(draw(length), np.ones(length)) for _ in range(recipe.data.questions)]
        sequences.append(pack_sequence(head, segments, recipe.data.context))
    return Batch(
        frames=rng.integers(0, 256, shapes.frames.shape, np.uint8),
        frame_mask=np.ones(shapes.frame_mask.shape, bool),
        examples=np.arange(stage.batch, dtype=np.int32),
        errors=np.zeros(stage.batch, np.int32),
        **{name: np.stack([each[name] for each in sequences]) for name in sequences[0]},
    )


def make_parts(recipe: Recipe) -> list[Part]:
    """All parts, in the order in which they are measured; nothing is allocated yet.

    ConfigError where the sequences are too short for their questions; MeshError, StageError.
    """
    question_length(recipe)  # before anything is compiled
    model, parts = build_model(recipe), []
    build_layout(recipe, model)
    for number, stage in enumerate(recipe.stages):
        work = step_costs(recipe, stage, model.params).step().values()
        count = stage.batch * sum(once for once, _ in work)
        start = functools.partial(_start_stage, recipe, model, number)
        parts.append(Part(f"stage {stage.name}", stage.batch, count, start))
    if stage.input != "video":
        return parts
    once, clips = step_costs(recipe, stage, model.params).forward(), stage.batch
    # Three times: the forward pass, the gradients of the weights, those of the inputs.
    decoder = 3 * clips * sum(once[name] for name in ("decoder", "attention", "head"))
    return [
        *parts,
        Part(ENCODER, clips, 3 * clips * once["encoder"], lambda: _start_encoder(recipe)),
        Part(DECODER, clips, decoder, lambda: _start_decoder(recipe)),
        Part(EVALUATION, clips, clips * sum(once.values()), lambda: _start_loss(recipe, model)),
    ]


def draw_arrays(recipe: Recipe, model: FunctionalModel, layout) -> dict:
    """The arrays that a run of the recipe starts from; the same ones at every call."""
    placement = StatePlacement(model, recipe.stages, recipe.model.dtype, layout)
    return placement.draw(jax.random.key(recipe.seed))


class PlacedStage(NamedTuple):
    """A stage at its beginning, its arrays on the devices."""

    setup: StageSetup
    placement: StatePlacement
    arrays: StageArrays
    key: jax.Array


def place_stage(recipe: Recipe, model: FunctionalModel, number: int) -> PlacedStage:
    """Draws and places the arrays of stage `number`, as training does."""
    stage, layout = recipe.stages[number], layouts.make(recipe.parallel, recipe.mesh)
    setup = prepare_stage(stage, model.params, stage.steps or stage.warmup + 1)
    placement = StatePlacement(model, recipe.stages, recipe.model.dtype, layout)
    arrays = placement.draw(jax.random.key(recipe.seed))
    key = arrays["key"]
    return PlacedStage(setup, placement, placement.place(arrays, number, setup), key)


def _start_stage(recipe: Recipe, model: FunctionalModel, number: int) -> Started:
    placed = place_stage(recipe, model, number)
    layout, state = placed.placement.layout, placed.arrays.state
    batch = layout.put(draw_batch(recipe, placed.setup.stage))
    jax.block_until_ready((state, batch))
    start = time.perf_counter()
    chunk = recipe.model.loss_chunk
    update = compile_update(model, placed.setup, layout, state, batch, chunk)
    compiling = time.perf_counter() - start

    def call():
        nonlocal state
        state, metrics = jax.block_until_ready(update(state, batch))

    return Started(call, compiling, _memory(update))


def _memory(program) -> int:
    used = program.memory_analysis()
    return 0 if used is None else used.argument_size_in_bytes + used.temp_size_in_bytes


def _started(layout, function: Callable, *arguments: Any) -> Started:
    jax.block_until_ready(arguments)
    start = time.perf_counter()
    program = jax.jit(layout.on_mesh(function)).lower(*arguments).compile()
    compiling = time.perf_counter() - start
    return Started(lambda: jax.block_until_ready(program(*arguments)), compiling, _memory(program))


def _alone(recipe: Recipe, name: str, make: Callable) -> tuple[FunctionalModel, dict, dict, Any]:
    """(the model of one part, under its name in the whole one, its parameters, its statistics,
    their layout)."""
    dtype = jnp.dtype(recipe.model.dtype)
    kinds = dict(dtype=dtype, param_dtype=jnp.promote_types(dtype, jnp.float32))
    model = FunctionalModel.of(lambda rngs: nnx.Dict({name: make(rngs=rngs, **kinds)}))
    layout = layouts.make("jit", recipe.mesh)
    shardings = layout.array_shardings(model.params, model.stats)
    params, stats = jax.jit(model.init, out_shardings=shardings)(jax.random.key(recipe.seed))
    return model, params, stats, layout


def _start_encoder(recipe: Recipe) -> Started:
    """Forward and backward from pixels to feature maps, with the batch's own statistics."""
    make = functools.partial(ResNet, recipe.resnet, remat=recipe.model.remat != "none")
    model, params, stats, layout = _alone(recipe, "encoder", make)
    batch = layout.put(draw_batch(recipe, recipe.stages[-1]))

    def loss(params, stats, frames, mask):
        module = model.merge(params, stats)
        x_NHWC = normalise(join_frames(frames), jnp.dtype(recipe.model.dtype))
        features = module.encoder(x_NHWC, join_frames(mask), use_running=False)
        return jnp.mean(jnp.square(features.astype(jnp.float32))), model.read_stats(module)

    gradient = jax.grad(loss, has_aux=True)
    return _started(layout, gradient, params, stats, batch.frames, batch.frame_mask)


def _start_decoder(recipe: Recipe) -> Started:
    """Forward and backward from tokens to the loss, with the gradients of all its parameters."""
    make = functools.partial(Llama, recipe.llama, remat=recipe.model.remat)
    model, params, stats, layout = _alone(recipe, "decoder", make)
    batch = layout.put(draw_batch(recipe, recipe.stages[-1])._replace(frames=np.zeros(0)))
    chunk = recipe.model.loss_chunk

    def loss(params, batch):
        decoder = model.merge(params, stats).decoder
        x_BLD = decoder.embed_rows(batch.tokens)
        hidden, _ = decoder(x_BLD, batch.positions, batch.segments)
        total = token_loss_sum(decoder, hidden, batch.targets, batch.weights, chunk)
        return total / batch.weights.sum()

    return _started(layout, jax.grad(loss), params, batch)


def _start_loss(recipe: Recipe, model: FunctionalModel) -> Started:
    """The validation loss: forward, with running statistics."""
    layout = layouts.make("jit", recipe.mesh)
    arrays = draw_arrays(recipe, model, layout)
    dtype = jnp.dtype(recipe.model.dtype)
    params = {path: arrays["params"].pop(path).astype(dtype) for path in model.params}
    batch = layout.put(draw_batch(recipe, recipe.stages[-1]))
    loss = make_loss(model, loss_chunk=recipe.model.loss_chunk)
    return _started(layout, loss, params, arrays["stats"], batch)
