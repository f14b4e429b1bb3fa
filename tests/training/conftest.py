"""A video LLM of some ten thousand parameters, and batches of uneven rows for it."""

import contextlib
import importlib.util
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.config.check import resolve
from rvllm_jax.config.schema import Recipe
from rvllm_jax.data.video import encode
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.lora import LoRA, adapt
from rvllm_jax.models.resnet import ResNetConfig
from rvllm_jax.models.video_llm import VideoLLM
from rvllm_jax.types import NO_SLOT, PADDING, PREFIX, Batch, VisualLayout

RESNET = ResNetConfig((1, 1), False, (8, 16), stem="small", stem_stride=2, groups=4)
LLAMA = LlamaConfig(50, 16, 2, 4, 2, 8, 24, context=64)
LAYOUT = VisualLayout("spatiotemporal", frames=3, grid=2)
L, SIZE = 20, 8


def _tiny_model(
    dtype=jnp.float32,
    llama: LlamaConfig = LLAMA,
    layout: VisualLayout = LAYOUT,
    param_dtype=None,
    lora: LoRA | None = None,
) -> FunctionalModel:
    kinds = {"dtype": dtype, "param_dtype": param_dtype or dtype}

    def make(rngs):
        model = VideoLLM(RESNET, llama, layout, rngs=rngs, **kinds)
        if lora is not None:
            adapt(model.decoder, lora, rngs=rngs)
        return model

    return FunctionalModel.of(make)


def _tiny_batch(num_frames=(3, 1, 0, 0, 2, 3, 0, 1), *, with_frames=True, seed=0) -> Batch:
    """Rows with that many real frames; where there are none the row is empty.

    A row is a visual prefix, one or two questions of uneven length, and padding; every row has a
    different number of answer tokens. `with_frames` False: T = 0, text in the video's place.
    """
    rng = np.random.default_rng(seed)
    B, T = len(num_frames), LAYOUT.frames if with_frames else 0
    slots = np.full((B, L), NO_SLOT, np.int32)
    segments = np.full((B, L), PADDING, np.int32)
    weights = np.zeros((B, L), np.float32)
    for row, number in enumerate(num_frames):
        if number == 0:
            continue
        filled = LAYOUT.filled(number)
        if with_frames:
            slots[row, 2 : 2 + len(filled)] = filled
        segments[row, :10] = PREFIX
        segments[row, 10:15] = 1
        segments[row, 15 : 15 + row % 6] = 2
        weights[row, 14 - row % 4 : 15 + row % 6] = 1
    is_text = (slots == NO_SLOT) & (segments != PADDING)
    real = np.arange(T) < np.array(num_frames)[:, None]
    empty = np.array(num_frames) == 0
    return Batch(
        # What lies in padding is noise too: it must not matter.
        frames=rng.integers(0, 256, (B, T, SIZE, SIZE, 3), dtype=np.uint8),
        frame_mask=real,
        tokens=np.where(is_text, rng.integers(1, LLAMA.vocab_size, (B, L)), 0).astype(np.int32),
        slots=slots,
        positions=np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        segments=segments,
        targets=rng.integers(0, LLAMA.vocab_size, (B, L)).astype(np.int32),
        weights=weights,
        examples=np.where(empty, -1, np.arange(B)).astype(np.int32),
        errors=np.zeros(B, np.int32),
    )


def _tiny_arrays(model: FunctionalModel, seed=0) -> tuple[dict, dict]:
    # Compiling `model.init` takes longer than all else here.
    rng = np.random.default_rng(seed)

    def draw(path, x):
        around = 1 if path.endswith(("scale", "var")) else 0
        spread = 0.1 if len(x.shape) == 1 else 0.25
        return jnp.asarray(around + spread * rng.uniform(-1, 1, x.shape), x.dtype)

    params = {path: draw(path, x) for path, x in model.params.items()}
    return params, {path: draw(path, x) for path, x in model.stats.items()}


@pytest.fixture(scope="module")
def process_groups():
    """A list of processes, each the first of a group, which are ended when the tests are."""
    started = []
    yield started
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def tiny_model():
    """(dtype, llama, layout, param_dtype: dtype by default, lora) -> FunctionalModel."""
    return _tiny_model


@pytest.fixture(scope="session")
def tiny_arrays():
    """(model, seed) -> parameters and statistics."""
    return _tiny_arrays


@pytest.fixture(scope="session")
def tiny_batch():
    """(num_frames a row, with_frames, seed) -> Batch."""
    return _tiny_batch


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles in a third of the time; what is compiled runs more slowly."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Runs of seconds through the real command, on real files.

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


def _record(number: int, name: str = "") -> dict:
    """A LLaVA record with three questions and a caption."""
    colour = list(COLOURS)[number % 4]
    turns = [
        ("colour", "What colour is it?", colour),
        ("number", "Which number is this?", str(number)),
        ("existence", "Is it red?", "Yes" if colour == "red" else "No"),
    ]
    messages = []
    for kind, question, answer in turns:
        messages.append({"from": "human", "value": question, "type": kind})
        messages.append({"from": "gpt", "value": answer})
    messages[0]["value"] = "<video>\n" + messages[0]["value"]
    caption = f"It is {colour}, number {number}."
    own = {"id": name or str(number), "video": name or f"{number}.mp4", "caption": caption}
    return own | {"conversations": messages}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with eight videos and one that does not decode, their annotations, and room."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "videos").mkdir()
    for number in range(8):
        frames = np.zeros((12, 16, 16, 3), np.uint8)
        frames[:] = list(COLOURS.values())[number % 4]
        frames[:, :, : 2 * number] //= 2
        encode.write(folder / "videos" / f"{number}.mp4", frames, fps=8)
    (folder / "videos" / "bad.mp4").write_bytes(b"this is no video")
    train = [_record(number) for number in range(6)]
    train.insert(3, _record(0, "bad.mp4"))
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "validation.json").write_text(json.dumps([_record(6), _record(7)]))
    return folder


@pytest.fixture(scope="session")
def settings(workplace):
    """The keys by which configs/joint.py becomes a run of seconds."""
    values = {
        "data.videos": str(workplace / "videos"),
        "data.conversations": str(workplace / "train.json"),
        "data.validation": str(workplace / "validation.json"),
        "data.store": str(workplace / "store"),
        **{"data.max_bad": 0.2, "data.frames": 4, "data.interval": 2, "data.stride": 2},
        **{"data.short_side": 16, "data.crop": 16, "data.context": 96, "data.questions": 3},
        **{"data.workers": 0, "tokenizer.vocab_size": 300, "model.grid": 2},
        **{"schedule": "visual,joint", "checkpoint.every": 2, "log_every": 1},
        **{"evaluation.every": 2, "evaluation.batch": 8, "evaluation.max_new": 4},
        **{"evaluation.controls": False, "evaluation.probe_videos": 1},
    }
    for stage in ("visual", "joint"):
        values |= {f"stages.{stage}.{k}": v for k, v in dict(steps=6, batch=4).items()}
        values[f"stages.{stage}.warmup"] = 2
    return values


@pytest.fixture(scope="session")
def recipe(settings):
    """recipe(**keys) -> Recipe of one stage, for this process and its eight devices."""
    joint = Path(__file__).parents[2] / "configs" / "joint.py"
    spec = importlib.util.spec_from_file_location("joint", joint)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def recipe(**changes) -> Recipe:
        values = settings | {"schedule": "visual", "stages.visual.batch": 8}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        config = module.get_config()
        with config.unlocked():
            config.update_from_flattened_dict(values)
        return resolve(config)

    return recipe


@pytest.fixture(scope="session")
def record():
    """(number, name) -> a LLaVA record of the workplace's kind."""
    return _record
