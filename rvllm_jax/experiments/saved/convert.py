"""Published folders, our flat files and working directories, made into one another."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve
from rvllm_jax.data.text import tokenizer
from rvllm_jax.data.text.tokenizer_config import GENERATION, TOKENIZER_FILES, TokenizerError
from rvllm_jax.experiments.saved import special_ids, training_videos
from rvllm_jax.experiments.saved.describe import describe, describe_weights, expected, resnet_config
from rvllm_jax.experiments.saved.open import config_of_run, read_run
from rvllm_jax.models.lora import merged
from rvllm_jax.system.atomic import write_bytes
from rvllm_jax.system.lock import locked
from rvllm_jax.training.workdir import is_bound, read_config
from rvllm_jax.weights import load, names
from rvllm_jax.weights.check import PROJECTOR, projector_hint
from rvllm_jax.weights.open import OURS, Entry, open_weights
from rvllm_jax.weights.safetensors import WeightsError
from rvllm_jax.weights.save import check_new, filling, save_flat, save_published
from rvllm_jax.weights.vocabulary import AXES, grow


@dataclasses.dataclass
class Parts:
    """A model, or parts of one: arrays (or entries of files) by path, and what they are."""

    arrays: dict[str, Any]
    description: dict[str, Any]  # what model.json holds
    tokenizer: Path | None  # the folder that may hold a tokenizer
    notes: list[str]
    trained_on: dict[str, Any] | None = None  # of training_videos.json; None: not known

    @property
    def ids(self) -> dict[str, Any]:
        """What model.json says of the ids by which texts start and end."""
        decoder = self.description.get("decoder", {})
        return {key: decoder[key] for key in special_ids.DOES if key in decoder}


def convert(
    sources: list[str],
    out: str,
    *,
    form: str = "ours",
    best: str = "",
    vocab_size: int = 0,
    leave_out: str = "",
) -> list[str]:
    """Writes `out` from `sources` (see convert.py), and returns lines that say what was done.

    Raises WeightsError, CheckpointError, ConfigError or LockError before it writes.
    """
    check_new(out)
    with locked(out, advice="name another --out"):
        return _convert(sources, out, form, best, vocab_size, leave_out)


def _convert(
    sources: list[str], out: str, form: str, best: str, vocab_size: int, leave_out: str
) -> list[str]:
    runs = [source for source in sources if is_bound(source)]
    if best and not runs:
        raise WeightsError(
            f"{', '.join(sources)}: has no best checkpoint of stage {best!r}, which only a working "
            "directory with checkpoints has; leave out --best"
        )
    if runs and len(sources) > 1:
        raise WeightsError(
            f"{runs[0]}: is a working directory, which holds a whole model by itself"
        )
    parts = _of_run(Path(runs[0]), best) if runs else _of_folders(sources, vocab_size)
    if leave_out:
        _leave_out(parts, leave_out)
    _check_features(parts)
    _add_tokenizer(parts, vocab_size)
    if vocab_size:
        _grow(parts, vocab_size)
    with filling(out):
        _write(parts, out, form)
    return [*parts.notes, f"written: {out}"]


def _write(parts: Parts, out: str, form: str) -> None:
    if form == "transformers":
        _save_decoder(parts, out)
    else:
        save_flat(out, parts.arrays, parts.description)
        if parts.trained_on is not None:
            training_videos.write(out, parts.trained_on)
    if parts.tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (parts.tokenizer / name).is_file():
                write_bytes(Path(out) / name, (parts.tokenizer / name).read_bytes())
        if (generation := parts.tokenizer / GENERATION).is_file():
            copied = Path(out) / GENERATION
            special_ids.write_generation(generation, copied, parts.ids, parts.notes)


def _add_tokenizer(parts: Parts, vocab_size: int) -> None:
    """Compares a tokenizer with the decoder that it goes out with, and notes its special tokens.

    vocab_size: what the vocabulary will grow to; 0: it stays.
    """
    decoder, where = parts.description.get("decoder"), parts.tokenizer
    if decoder is None or where is None:
        return
    size = max(decoder["vocab_size"], vocab_size)
    special_ids.check_generation(where, size)
    if not tokenizer.holds_tokenizer(where):
        return
    try:
        loaded = tokenizer.load(where)
    except TokenizerError as error:  # the weights are whole all the same
        parts.notes.append(f"the tokenizer is copied and cannot be used: {error}")
        return
    if loaded.vocab_size > size:
        raise WeightsError(
            f"{where}: its tokenizer has {loaded.vocab_size} tokens, and the decoder {size}: give "
            f"the decoder's decoder tokenizer, or make room by --vocab_size={loaded.vocab_size}"
        )
    parts.notes.append(f"tokenizer: {loaded.vocab_size} of the decoder's {size} tokens")
    parts.description["decoder"] = decoder | special_ids.agree(decoder, loaded, parts.notes)


def _of_run(workdir: Path, best: str) -> Parts:
    recipe = resolve(config_of_run(workdir, best), workdir / "config.json")
    config = read_config(workdir)
    model = build_model(recipe)
    params, stats, _, line = read_run(workdir, best, model)
    notes = [line]
    if recipe.lora is not None:
        params = merged(params, recipe.lora)
        notes.append(f"  merged into the decoder: {recipe.lora}")
        for stage in config["stages"].values():  # what is written has no adapters any more
            stage.pop("lora", None)
    description = describe(
        recipe.resnet, recipe.llama, recipe.model.projector, recipe.layout, config
    )
    trained_on = training_videos.read(workdir)
    return Parts(params | stats, description, workdir / "tokenizer", notes, trained_on)


def _of_folders(sources: list[str], vocab_size: int) -> Parts:
    opened = [open_weights(source) for source in sources]
    entries, description, notes, folder = load.combine(opened), {}, [], None
    for weights in opened:
        part = describe_weights(weights)
        load.check(weights.entries, expected(part, weights.path), where=str(weights.path))
        kinds = ", ".join(_parts_of(weights.entries))
        notes.append(f"{weights.path}: {len(weights.entries)} arrays of {kinds}")
        if "decoder" in part and weights.path.is_dir():
            folder = weights.path  # the tokenizer is the decoder's
            size = max(part["decoder"]["vocab_size"], vocab_size)
            if weights.ours:
                special_ids.read(part["decoder"], size, folder / OURS)
            else:
                part["decoder"] |= special_ids.read(weights.config, size, folder / "config.json")
        description |= part
        if weights.ignored:
            notes.append(f"  left out: {', '.join(weights.ignored)}")
    return Parts(dict(entries), description, folder, notes, training_videos.merged(sources))


def _leave_out(parts: Parts, regex: str) -> None:
    gone = select_paths(parts.arrays, regex)
    for path in gone:
        del parts.arrays[path]
    if not parts.arrays:
        raise WeightsError(f"--leave_out={regex!r} leaves nothing")
    if "decoder" not in _parts_of(parts.arrays):
        parts.tokenizer = None  # it is the decoder's
    parts.description = describe_rest(parts.description, parts.arrays)
    parts.notes.append(f"left out: {', '.join(gone)}")


def _check_features(parts: Parts) -> None:
    """Refuses a projector that was made for another encoder than the one it goes out with."""
    encoder, kernel = parts.description.get("encoder"), parts.arrays.get(PROJECTOR)
    if encoder is None or kernel is None:
        return
    features = resnet_config(encoder).features
    if kernel.shape[0] != features:
        raise WeightsError(
            f"the sources do not go together: {projector_hint(kernel.shape[0], features)}"
        )


def _grow(parts: Parts, size: int) -> None:
    if "decoder" not in parts.description:
        raise WeightsError("--vocab_size: there is no decoder whose vocabulary could grow")
    old = parts.description["decoder"]["vocab_size"]
    for path in AXES.keys() & parts.arrays.keys():
        array = parts.arrays[path]
        array = array.read() if isinstance(array, Entry) else np.asarray(array)
        parts.arrays[path] = grow(path, array, size)
    parts.description["decoder"] |= {"vocab_size": size}
    parts.notes.append(f"vocabulary: {old} -> {size} tokens; the new ones are the mean of the old")


def _save_decoder(parts: Parts, out: str) -> None:
    """The decoder in one dtype, the widest of its arrays: transformers has one for all."""
    decoder = {path: x for path, x in parts.arrays.items() if path.startswith("decoder/")}
    if not decoder:
        raise WeightsError("--form=transformers writes the decoder, and there is none here")
    dtype = np.dtype(jnp.result_type(*(x.dtype for x in decoder.values())))
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    entries = {path: x for path, x in decoder.items() if isinstance(x, Entry)}
    targets = {path: jax.ShapeDtypeStruct(x.shape, dtype) for path, x in entries.items()}
    loaded = load.load(entries, targets, dict.fromkeys(entries, place))
    arrays = {
        path: loaded[path] if path in loaded else decoder[path].astype(dtype) for path in decoder
    }
    values = parts.description["decoder"] | {"dtype": dtype.name, "torch_dtype": dtype.name}
    save_published(out, arrays, names.LLAMA, values)
    parts.notes.append(_open_by_transformers(out))
    if left := _parts_of(parts.arrays.keys() - decoder.keys()):
        parts.notes.append(f"left out: {', '.join(left)}, which transformers has no place for")


def _open_by_transformers(folder: str) -> str:
    """That the library that `folder` is for reads its config.json as the decoder that was meant."""
    import transformers  # takes seconds: only where something leaves for it

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder}: transformers {transformers.__version__} does not open what was written: "
            f"{error}; correct the sizes that the source's config.json gives"
        ) from error
    sizes = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    return f"transformers {transformers.__version__} opens it: {config.model_type}, {sizes}"


def select_paths(paths: Iterable[str], regex: str) -> list[str]:
    """The paths that the whole of `regex` matches; [] for "".

    Raises WeightsError for a broken regex, one that matches nothing, and one that matches a part
    of what only works as a whole: encoder, projector or decoder.
    """
    if not regex:
        return []
    try:
        chosen = sorted(path for path in paths if re.fullmatch(regex, path))
    except re.error as error:
        raise WeightsError(f"--leave_out={regex!r} is no regex: {error}") from error
    if not chosen:
        parts = ", ".join(_parts_of(paths))
        raise WeightsError(
            f"--leave_out={regex!r} matches no path; there are those of {parts}: 'projector/.*'"
        )
    kept = {path.partition("/")[0]: path for path in set(paths) - set(chosen)}
    if split := [part for part in _parts_of(chosen) if part in kept]:
        raise WeightsError(
            f"--leave_out={regex!r} leaves {kept[split[0]]} there; leave out all of the "
            f"{split[0]} ('{split[0]}/.*') or nothing of it"
        )
    return chosen


def describe_rest(description: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The model.json of what is left of a model, when whole parts of it are gone: `arrays`.

    It is no whole video model any more, so the recipe goes too.
    """
    parts = _parts_of(arrays)
    kept = {key: value for key, value in description.items() if key in parts}
    if "projector" in parts:
        kept["features"], kept["width"] = arrays[PROJECTOR].shape
        if "layout" in description:  # ours has places of the visual tokens
            kept["layout"] = description["layout"]
    return kept


def _parts_of(paths: Iterable[str]) -> list[str]:
    return sorted({path.partition("/")[0] for path in paths})
