"""Decoding beside transformers' `generate` with its DynamicCache: the same weights, the same ids.

Both run in this process; printed are the best time of each and the ratio of the bests.
"""

import argparse
import functools
import importlib
import tempfile
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from rvllm_jax.data.text.template import TEMPLATES
from rvllm_jax.data.text.tokenizer import train
from rvllm_jax.generation import decode
from rvllm_jax.generation.engine import Engine
from rvllm_jax.generation.sampling import GREEDY
from rvllm_jax.generation.unrolled import unroll
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.speed import measure
from rvllm_jax.speed.synthetic import draw_model
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.types import NO_SLOT, PREFIX, Questions
from rvllm_jax.weights.hf_config import llama_values
from rvllm_jax.weights.names import LLAMA
from rvllm_jax.weights.save import save_published

DESCRIPTION = "tokens a second beside transformers' generate, and a video with ten questions"
COLUMNS = measure.Columns(34, {"ms": "9.1f", "tokens/s": "10.0f", "ratio": "7.2f"})
LABELS = {
    "prefill": "one prefill, a single program",
    "first": "first token of a new session",
    "apart": "ten questions, ten calls",
    "together": "ten questions, one video",
}
SIZES = ("width", "layers", "vocab", "prompt", "new", "frames", "rounds")  # of a measurement
_NEVER = -1  # a stop id that no token has: all answers have their full length
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
    measure.add_arguments(parser, rounds=7)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report. Raises MissingTorch."""
    torch, transformers = _imported("torch"), _imported("transformers")
    torch.set_num_threads(2)
    width = arguments.width
    model, params, stats = draw_model(
        "resnet18",
        arguments.frames,
        vocab=arguments.vocab,
        width=width,
        layers=arguments.layers,
        mlp_width=-(-width * 8 // 3 // 32) * 32,  # Llama's 8/3, to a multiple of 32
        context=2048,
    )
    module = unroll(model.merge(params, stats))
    with tempfile.TemporaryDirectory() as folder:
        decoder = {path: x for path, x in params.items() if path.startswith("decoder/")}
        save_published(folder, decoder, LLAMA, llama_values(module.decoder.config, "float32"))
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    yield (
        f"d={width}, {arguments.layers} layers, vocabulary {arguments.vocab}, float32, prompt "
        f"{arguments.prompt}, {arguments.new} new tokens; best of {arguments.rounds}"
    )
    yield COLUMNS.head
    seconds = {}  # of the best call, by what was done and how
    for batch in arguments.batches:
        prompts = np.random.default_rng(batch).integers(
            3, arguments.vocab, (batch, arguments.prompt), np.int32
        )
        our_way = functools.partial(_our_way(module, arguments.new), _questions(prompts))
        their_way = _their_way(theirs, torch, prompts, arguments.new)
        same = (our_way()[:, 0] == their_way()).mean()
        ways, tokens = {"ours": our_way, "theirs": their_way}, batch * arguments.new
        name = f"batch {batch}"
        seconds[name] = yield from _compare(arguments.rounds, ways, "theirs", f"{name}, ", tokens)
        yield f"{name}: {same:.1%} of the greedy ids are the same"
    ways = _first_token(arguments, module)
    seconds["first token"] = yield from _compare(arguments.rounds, ways, "prefill")
    ways = _ten_questions(arguments, module)
    seconds["ten questions"] = yield from _compare(max(1, arguments.rounds // 2), ways, "apart")
    sizes = {key: value for key, value in vars(arguments).items() if key in SIZES}
    return {"sizes": sizes, "seconds": seconds}


def _compare(
    number: int, ways: dict[str, Callable], baseline: str, title: str = "", tokens: int = 0
) -> measure.Report:
    """A line a way; returns the seconds of the best call of each. tokens: those of a call."""
    rounds = measure.time_calls(number, **ways)
    best = {way: measure.best(rounds, way) for way in ways}
    for way, seconds in best.items():
        rate = tokens / seconds if tokens else ""
        label = f"{title}{LABELS.get(way, way)}"
        yield COLUMNS.line(label, 1e3 * seconds, rate, seconds / best[baseline])
    return best


def _imported(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingTorch(
            f"{name} cannot be imported ({error}); this comparison needs the extra `parity`: "
            "pip install -e .[parity]"
        ) from error


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


def _our_way(model: VideoLLM, new: int) -> Callable[[Questions], np.ndarray]:
    """questions -> ids, compiled; the layers are apart already, as in a session."""
    graph, arrays = nnx.split(model)

    @jax.jit
    def generate(arrays, questions):
        options = dict(sampling=GREEDY, max_new=new, stop_ids=(_NEVER,))
        return decode.generate(nnx.merge(graph, arrays), questions, **options)

    return lambda questions: np.asarray(generate(arrays, questions))


def _their_way(model, torch, prompts: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    """-> ids; transformers' `generate`, which is not stopped before `new` tokens."""
    given = torch.tensor(prompts, dtype=torch.long)
    lengths = dict(max_new_tokens=new, min_new_tokens=new)
    options = dict(do_sample=False, use_cache=True, pad_token_id=0, **lengths)

    @torch.inference_mode()
    def generate():
        ids = model.generate(given, attention_mask=torch.ones_like(given), **options)
        return ids.numpy()[:, prompts.shape[1] :]

    return generate


def _video_session(arguments, model):
    """An engine over the model, a video, and its questions."""
    words = "what does the red circle do which way is it going and where does it end"
    engine = Engine(model, train([words] * 3, 300), TEMPLATES["vicuna_v1"])
    shape = (arguments.frames, _SIDE, _SIDE, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return engine, (frames, np.ones(arguments.frames, bool)), words.split()[:10]


def _first_token(arguments, model) -> dict[str, Callable]:
    """A video encoded, its prompt read, and one token shown, beside the same as one program."""
    engine, video, (question, *_) = _video_session(arguments, model)
    session = engine.session(*video)
    prompt = np.array([[session._prompt(question, [])]], np.int32)
    questions = session._questions._replace(
        question_tokens=prompt,
        question_mask=np.ones(prompt.shape, bool),
        ids=np.zeros((1, 1), np.int32),
    )
    return {
        "prefill": functools.partial(_our_way(model, 1), questions),
        "first": lambda: next(engine.session(*video).stream(question, max_new=1), None),
    }


def _ten_questions(arguments, model) -> dict[str, Callable]:
    """Ten questions, each about the video encoded anew, and together about one."""
    engine, video, questions = _video_session(arguments, model)
    new = arguments.new
    return {
        "apart": lambda: [engine.session(*video).ask(q, max_new=new) for q in questions],
        "together": lambda: engine.session(*video).answers(questions, max_new=new),
    }
