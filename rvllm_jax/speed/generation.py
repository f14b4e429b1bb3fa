"""Decoding beside transformers' `generate` with its DynamicCache: the same weights, the same ids.

Both run in this process, in turns, so that what else runs on the machine falls on each alike;
printed are the best time of each and the ratio of the bests.
"""

import argparse
import functools
import importlib
import time

import jax
import numpy as np
from flax import nnx

from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import train
from rvllm_jax.generation import decode
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.sampling import GREEDY
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.resnet import RESNETS
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.speed import figures
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import NO_SLOT, PREFIX, Questions, VisualLayout
from rvllm_jax.weights.hf_config import llama_values

DESCRIPTION = "tokens a second beside transformers' generate, and a video with ten questions"
_NEVER = -1  # a stop id that no token has: all answers have their full length
SIZES = ("width", "layers", "vocab", "prompt", "new", "frames", "rounds")  # of a measurement
_SIDE = 112  # pixels of the video's frames


class MissingTorch(RvllmError, RuntimeError):
    """torch or transformers cannot be imported; says what to install."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--width", type=int, default=512, help="of the decoder")
    add("--layers", type=int, default=8, help="of the decoder")
    add("--vocab", type=int, default=32_000, help="tokens of the vocabulary")
    add("--prompt", type=int, default=64, help="tokens before the answer")
    add("--new", type=int, default=64, help="tokens of an answer")
    add("--batches", type=int, nargs="+", default=[1, 8], help="answers at a time")
    add("--frames", type=int, default=16, help="frames of the video")
    add("--rounds", type=int, default=7, help="measurements of each")
    figures.add_json(parser)


def run(arguments: argparse.Namespace) -> str:
    """The report, as text. Raises MissingTorch and ConfigError."""
    figures.check(arguments.json)
    torch, transformers = _imported("torch"), _imported("transformers")
    torch.set_num_threads(2)
    model = _model(arguments)
    theirs = _theirs(model.decoder, torch, transformers)
    lines = [
        f"d={arguments.width}, {arguments.layers} layers, vocabulary {arguments.vocab}, float32, "
        f"prompt {arguments.prompt}, {arguments.new} new tokens; best of {arguments.rounds}",
        f"{'':34}{'ms':>9}{'tokens/s':>10}  ratio",
    ]
    seconds = {}  # seconds by what was done and how
    for batch in arguments.batches:
        lines += _compare(arguments, model, theirs, torch, batch, seconds)
    lines += _first_token(arguments, model, seconds) + _ten_questions(arguments, model, seconds)
    sizes = {key: value for key, value in vars(arguments).items() if key in SIZES}
    figures.write(arguments.json, sizes=sizes, seconds=seconds)
    return "\n".join(lines)


def _imported(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingTorch(
            f"{name} cannot be imported ({error}); this comparison needs the extra `parity`: "
            "pip install -e .[parity]"
        ) from error


def _model(arguments) -> VideoLLM:
    heads = arguments.width // 64
    config = LlamaConfig(
        arguments.vocab,
        arguments.width,
        arguments.layers,
        heads,
        heads,
        64,
        # Llama's 8/3 of the width, to a multiple of 32
        -(-arguments.width * 8 // 3 // 32) * 32,
        context=2048,
    )
    layout = VisualLayout("global", arguments.frames)
    return unroll(VideoLLM(RESNETS["resnet18"], config, layout, rngs=nnx.Rngs(0)))


def _theirs(decoder, torch, transformers):
    """transformers' model with the decoder's arrays."""
    values = llama_values(decoder.config, "float32")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(values)).eval()

    def tensor(array):
        return torch.tensor(np.asarray(array))

    arrays = {"model.embed_tokens.weight": tensor(decoder.embed.embedding[...])}
    arrays["model.norm.weight"] = tensor(decoder.norm.scale[...])
    arrays["lm_head.weight"] = tensor(decoder.head.kernel[...].T)
    for number, block in enumerate(decoder.layers):
        place = f"model.layers.{number}"
        arrays[f"{place}.input_layernorm.weight"] = tensor(block.norm1.scale[...])
        arrays[f"{place}.post_attention_layernorm.weight"] = tensor(block.norm2.scale[...])
        for name in "qkvo":
            kernel = getattr(block.attention, name).kernel[...]
            arrays[f"{place}.self_attn.{name}_proj.weight"] = tensor(kernel.T)
        for name in ("gate", "up", "down"):
            arrays[f"{place}.mlp.{name}_proj.weight"] = tensor(
                getattr(block.mlp, name).kernel[...].T
            )
    model.load_state_dict(arrays, strict=True)
    return model


def _questions(prompts: np.ndarray) -> Questions:
    """Each prompt, int32[B, L], as a prefix of one token without a video, and a question."""
    B, L = prompts.shape
    return Questions(
        frames=np.zeros((B, 0, 8, 8, 3), np.uint8),
        frame_mask=np.zeros((B, 0), bool),
        tokens=prompts[:, :1],
        slots=np.full((B, 1), NO_SLOT, np.int32),
        positions=np.zeros((B, 1), np.int32),
        segments=np.full((B, 1), PREFIX, np.int32),
        question_tokens=prompts[:, None, 1:],
        question_mask=np.ones((B, 1, L - 1), bool),
        ids=np.arange(B, dtype=np.int32)[:, None],
        view_counts=np.ones(B, np.int32),
    )


def times_of(rounds: int, **ways) -> dict[str, list[float]]:
    """Seconds of every call of each function, in turns, without the first, which compiles."""
    times = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            spent = time.perf_counter() - start
            if number:
                times[name].append(spent)
    return times


def best_of(rounds: int, **ways) -> dict[str, float]:
    """Seconds of the best call of each function; the first calls, which compile, do not count."""
    return {name: min(times) for name, times in times_of(rounds, **ways).items()}


def _ours(model: VideoLLM, new: int):
    """questions -> ids, compiled; the layers are apart already, as in a session."""
    graph, arrays = nnx.split(model)

    @jax.jit
    def generate(arrays, questions):
        options = dict(sampling=GREEDY, max_new=new, stop_ids=(_NEVER,))
        return decode.generate(nnx.merge(graph, arrays), questions, **options)

    return lambda questions: np.asarray(generate(arrays, questions))


def _compare(arguments, model, theirs, torch, batch: int, seconds: dict) -> list[str]:
    rng = np.random.default_rng(batch)
    prompts = rng.integers(3, arguments.vocab, (batch, arguments.prompt)).astype(np.int32)
    generate, questions, new = _ours(model, arguments.new), _questions(prompts), arguments.new
    given = torch.tensor(prompts, dtype=torch.long)
    options = dict(
        attention_mask=torch.ones_like(given),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )

    @torch.inference_mode()
    def reference():
        return theirs.generate(given, **options).numpy()[:, prompts.shape[1] :]

    same = (generate(questions)[:, 0] == reference()).mean()
    best = best_of(arguments.rounds, ours=lambda: generate(questions), theirs=reference)
    seconds[f"batch {batch}"] = best
    rows = {"ours": best["ours"] / best["theirs"], "theirs": 1.0}
    return [
        f"{f'batch {batch}, {name}':34}{1e3 * best[name]:9.1f}{batch * new / best[name]:10.0f}"
        f"  {ratio:.2f}"
        for name, ratio in rows.items()
    ] + [f"batch {batch}: {same:.1%} of the greedy ids are the same"]


def _video_session(arguments, model):
    """An engine over the model, a video, and its questions."""
    words = "what does the red circle do which way is it going and where does it end"
    tokenizer = train([words] * 3, 300)
    engine = Engine(model, tokenizer, TEMPLATES["vicuna_v1"])
    shape = (arguments.frames, _SIDE, _SIDE, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return engine, (frames, np.ones(arguments.frames, bool)), words.split()[:10]


def _first_token(arguments, model, seconds: dict) -> list[str]:
    """A video encoded, its prompt read, and one token shown, beside the same as one program."""
    engine, video, (question, *_) = _video_session(arguments, model)
    session = engine.session(*video)
    prompt = np.array([[session._prompt(question, [])]], np.int32)
    questions = session._questions._replace(
        question_tokens=prompt,
        question_mask=np.ones(prompt.shape, bool),
        ids=np.zeros((1, 1), np.int32),
    )
    prefill = functools.partial(_ours(model, 1), questions)
    best = best_of(
        arguments.rounds,
        prefill=prefill,
        first=lambda: next(engine.session(*video).stream(question, max_new=1), None),
    )
    seconds["first token"] = best
    ratio = best["first"] / best["prefill"]
    return [
        f"{'one prefill, a single program':34}{1e3 * best['prefill']:9.1f}",
        f"{'first token of a new session':34}{1e3 * best['first']:9.1f}{'':10}  {ratio:.2f}",
    ]


def _ten_questions(arguments, model, seconds: dict) -> list[str]:
    engine, video, questions = _video_session(arguments, model)

    def together():
        return engine.session(*video).answers(questions, max_new=arguments.new)

    def apart():
        return [engine.session(*video).ask(q, max_new=arguments.new) for q in questions]

    best = best_of(max(1, arguments.rounds // 2), together=together, apart=apart)
    seconds["ten questions"] = best
    ratio = best["together"] / best["apart"]
    return [
        f"{'ten questions, ten calls':34}{1e3 * best['apart']:9.1f}",
        f"{'ten questions, one video':34}{1e3 * best['together']:9.1f}{'':10}  {ratio:.2f}",
    ]
