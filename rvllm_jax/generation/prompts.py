"""The ids that a model reads before it answers, as arrays."""

from collections.abc import Sequence

import numpy as np

from rvllm_jax.data import chat, packing
from rvllm_jax.data.tokenizer import Tokenizer
from rvllm_jax.types import Questions, VisualLayout

MULTIPLE = 32  # tokens; prompts are padded to one, so that few lengths are compiled


def prefixes(
    tokenizer: Tokenizer, template: chat.Template, layout: VisualLayout, frames, frame_mask, counts
) -> Questions:
    """Clips as rows without questions; frames uint8[C, T, H, W, 3], frame_mask bool[C, T], counts
    int[C] or None."""
    before, after = chat.prefix_ids(tokenizer, template)
    heads = [
        packing.prefix(before, after, visual=layout.filled(int(mask.sum()))) for mask in frame_mask
    ]
    length = max(map(len, heads))
    rows = [packing.pack_row(head, [], length) for head in heads]
    fields = ("tokens", "slots", "positions", "segments")
    C = len(frames)
    return Questions(
        frames=frames,
        frame_mask=frame_mask,
        **{field: np.stack([row[field] for row in rows]) for field in fields},
        asked=np.zeros((C, 0, 0), np.int32),
        asked_mask=np.zeros((C, 0, 0), bool),
        ids=np.zeros((C, 0), np.int32),
        counts=np.ones(C, np.int32) if counts is None else np.asarray(counts, np.int32),
    )


def padded(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """int32[Q, L] ids, padded on the right, and bool[Q, L], True where an id is."""
    length = round_up(max(map(len, prompts)), MULTIPLE)
    mask = np.arange(length) < np.array([[len(ids)] for ids in prompts])
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = [token for ids in prompts for token in ids]
    return tokens, mask


def common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many ids the two have in common from the first on."""
    pairs = zip(held, wanted, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(held), len(wanted)))


def round_up(number: int, multiple: int) -> int:
    """The next multiple of `multiple`."""
    return -(-number // multiple) * multiple
