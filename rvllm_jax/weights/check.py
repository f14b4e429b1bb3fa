"""What is wrong with weights for a model, tensor by tensor, in lines for one error."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rvllm_jax.weights.open import EMBEDDING, HEAD, Entry

MOST = 50  # lines
KINDS = "missing", "surplus", "misshapen", "wrong dtype"
CLIP_FEATURES = {768: "CLIP ViT-B", 1024: "CLIP ViT-L", 1152: "SigLIP SO400M"}
NO_HEAD = (
    "there is no lm_head.weight, and the model is not tied: if its logits are taken with the "
    "embedding, set tie_word_embeddings to true in the decoder's config.json; else "
    f"get the file that holds it, or train a new one, by --config.model.random={HEAD!r}"
)
PROJECTOR = "projector/linear_1/kernel"  # [features, width]


def find_faults(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], absent: list[str]
) -> list[str]:
    """A line a fault, in the order of KINDS; `absent` are paths of `targets` without an entry."""
    faults = [f"missing: {path} {_spec(targets[path])}" for path in absent]
    if HEAD in absent and EMBEDDING in entries:
        faults[absent.index(HEAD)] += f"\n    ({NO_HEAD})"
    for path, entry in entries.items():
        if path not in targets:
            faults.append(f"surplus: {path} {_spec(entry)}")
            continue
        if entry.stacked and len(entry.shape) == len(targets[path].shape):
            faults += _stack_faults(path, entry, targets[path])
        elif entry.shape != targets[path].shape:
            faults.append(_misshapen(path, entry, targets[path]))
        if wrong := [t for t in entry.tensors if not jnp.issubdtype(t.dtype, jnp.floating)]:
            faults.append(f"wrong dtype: {path} is {_spec(wrong[0])}, expected floating point")
    return sorted(faults, key=lambda line: KINDS.index(line.partition(":")[0]))


def list_faults(faults: list[str]) -> str:
    """The first MOST lines, and how many there are besides."""
    more = [f"and {len(faults) - MOST} more"] if len(faults) > MOST else []
    return "".join(f"\n  {line}" for line in faults[:MOST] + more)


def _stack_faults(path: str, entry: Entry, target: Any) -> list[str]:
    """Of layers, by their names; one line by our path where all are of one other shape."""
    count, shape = target.shape[0], target.shape[1:]
    if entry.axes is not None:
        shape = tuple(shape[entry.axes.index(axis)] for axis in range(len(shape)))
    layers = dict(zip(entry.layers, entry.tensors, strict=True))
    name, kind = entry.theirs, f"{np.dtype(target.dtype).name}{list(shape)}"
    absent = (layer for layer in range(count) if layer not in layers)  # a config may say 10**12
    faults = [f"missing: {name.format(n=n)} {kind}" for n in itertools.islice(absent, MOST)]
    if (more := count - sum(layer < count for layer in layers) - len(faults)) > 0:
        faults.append(f"missing: {more:,} more of {name} {kind}")
    faults += [
        f"surplus: {tensor.name} {_spec(tensor)}, of layer {layer}; the model has {count} layers"
        for layer, tensor in layers.items()
        if layer >= count
    ]
    wrong = [tensor for tensor in layers.values() if tensor.shape != shape]
    if len(wrong) == len(layers) and len({tensor.shape for tensor in wrong}) == 1:
        return [*faults, _misshapen(path, entry, target)]
    return faults + [
        f"misshapen: {tensor.name} is {_spec(tensor)}, expected {list(shape)}" for tensor in wrong
    ]


def _misshapen(path: str, entry: Entry, target: Any) -> str:
    line = f"misshapen: {path} is {_spec(entry)}, expected {_spec(target)}"
    if path != PROJECTOR or entry.shape[0] == target.shape[0]:
        return line
    return f"{line}\n    ({projector_hint(entry.shape[0], target.shape[0])})"


def projector_hint(features: int, encoder: int) -> str:
    """What to do where a projector of `features` inputs meets an encoder that makes others."""
    made_for = CLIP_FEATURES.get(features, "another encoder")
    return (
        f"this projector was made for the {features} features of {made_for}; the encoder here has "
        f"{encoder}: leave the projector out, by rvllm_jax.convert --leave_out='projector/.*', "
        "and train a new one, by --config.model.random='projector/.*'"
    )


def _spec(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
