"""The rate at which a folder's weights come to a device, beside those of its disk and of memory.

"disk" reads the files into one buffer after they were dropped from the system's cache, "cache" does
it again at once. Linux.
"""

import argparse
import ctypes
import functools
import gc
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.speed import measure
from rvllm_jax.weights import load as merge
from rvllm_jax.weights.names import LLAMA
from rvllm_jax.weights.open import Weights, open_weights
from rvllm_jax.weights.safetensors import WeightsError
from rvllm_jax.weights.save import save_published

DESCRIPTION = "a folder's weights to the device, beside the disk"
DISK, CACHE = "disk", "cache"
_BLOCK = 16 << 20  # bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--folder",
        type=measure.path,
        default="",
        help="weights, as training takes them; made if none",
    )
    add("--layers", type=int, default=8, help="of a made one, with Llama-7B's shapes in float16")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="here")
    measure.add_arguments(parser, rounds=3)


def run(arguments: argparse.Namespace) -> measure.Report:
    """The report. Raises WeightsError."""
    with tempfile.TemporaryDirectory() as made:
        weights = open_weights(arguments.folder or make(Path(made), arguments.layers))
        device, dtype = jax.local_devices()[0], jnp.dtype(arguments.dtype)
        tensors = [t for entry in weights.entries.values() for t in entry.tensors]
        size = sum(tensor.size for tensor in tensors)
        files = sorted({tensor.path for tensor in tensors})
        dtypes = ", ".join(sorted({tensor.dtype.name for tensor in tensors}))
        yield (
            f"{size / 1e9:.2f} GB of {dtypes} to {dtype.name} on {device.platform}, "
            f"{arguments.rounds} rounds"
        )
        load = functools.partial(_load, weights, dtype, device)
        load()  # compiles
        beyond = _beyond(load)
        timers = {}
        for name, way in (("", functools.partial(_read, files)), ("ours, ", load)):
            timers[f"{name}{DISK}"] = _without_cache(measure.timer(way), files)
            timers[f"{name}{CACHE}"] = measure.timer(way)
        rounds = list(measure.run_rounds(arguments.rounds, timers))
    table = measure.Columns(16, {"MB/s": "8.0f", f"of {DISK}": "9.2f"})
    yield table.head
    for name in timers:
        rate = size / measure.best(rounds, name) / 1e6
        yield table.line(name, rate, measure.ratio(rounds, DISK, name))
    most = "not measured" if beyond is None else f"{beyond / 1e6:.0f} MB"
    yield f"host memory beyond the device's arrays, at most: {most}"
    return {"bytes": size, "rounds": rounds, "bytes_beyond": beyond}


def _load(weights: Weights, dtype: np.dtype, device: jax.Device) -> int:
    """Loads all arrays, and returns their bytes in the host's memory."""
    entries, place = weights.entries, jax.sharding.SingleDeviceSharding(device)
    targets = {path: jax.ShapeDtypeStruct(x.shape, dtype) for path, x in entries.items()}
    merge.check(entries, targets, where=str(weights.path))
    arrays = merge.load(entries, targets, dict.fromkeys(entries, place))
    return sum(x.nbytes for x in arrays.values()) * (device.platform == "cpu")


def _read(files: list[Path]) -> None:
    buffer = memoryview(bytearray(_BLOCK))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _without_cache(timer: measure.Timer, files: list[Path]) -> measure.Timer:
    """The timer, started when no file is in the system's cache."""

    def seconds() -> float:
        for path in files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return timer()

    return seconds


def _beyond(load: Callable[[], int]) -> int | None:
    """Bytes of the process at most while loading, without what it held before and the arrays."""
    try:
        # What is free but kept, or freed meanwhile, would be taken again without being counted.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        arrays = load()
        return max(0, _status("VmHWM") - before - arrays)
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def make(
    folder: Path, layers: int, width: int = 4096, mlp: int = 11008, vocab: int = 32000
) -> Path:
    """A folder of a Llama with random numbers in float16; of 32 layers it is a 7B."""
    if layers < 1:
        raise WeightsError(f"--layers={layers}: a decoder has one at least")
    config = LlamaConfig(vocab, width, layers, 1, 1, head_dim=width, mlp_width=mlp, context=2048)
    model = FunctionalModel.of(lambda rngs: nnx.Dict(decoder=Llama(config, rngs=rngs)))
    some = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float16)
    # Every row of an array is the same one in memory.
    rows = {path: np.resize(some, x.shape[-1]) for path, x in model.params.items()}
    arrays = {path: np.broadcast_to(row, model.params[path].shape) for path, row in rows.items()}
    save_published(folder, arrays, LLAMA, {"architectures": ["LlamaForCausalLM"]})
    return folder
