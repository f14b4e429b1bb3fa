"""Counts, lengths and oddities of annotations and of videos, as plain values."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rvllm_jax.data.annotations.read import Annotations
from rvllm_jax.types import Example, VideoInfo

_BINS = 24
_COUNTED_APART = 12  # values of a tally
OTHER = "all others"  # the rest of a tally


def describe_annotations(annotations: Annotations) -> dict:
    """Counts, lengths and oddities of the rows."""
    examples = annotations.examples
    turns = [turn for example in examples for turn in example.turns]
    return {
        "conversations": len(examples),
        "questions": len(turns),
        "videos": len({example.video for example in examples}),
        "types": _tally(turn.kind for turn in turns if turn.kind),
        "answer_words": spread([len(turn.answer.split()) for turn in turns]),
        "question_words": spread([len(turn.question.split()) for turn in turns]),
        "answers": _tally(turn.answer for turn in turns),
        "duplicates": find_duplicates(examples),
        "rows_set_aside": annotations.set_aside,
        "rows_without_video": annotations.without_video,
        "rows_renamed": annotations.renamed,
    }


def describe_videos(info: Mapping[str, VideoInfo]) -> dict:
    """Durations, frame rates and sizes of the files whose header and first frame can be read."""
    values = list(info.values())
    seconds = [video.seconds for video in values if video.seconds > 0]
    return {
        "videos": len(values),
        "hours": sum(seconds) / 3600,
        "bytes": sum(video.bytes for video in values),
        "without_duration": len(values) - len(seconds),
        "seconds": spread(seconds),
        "file_bytes": spread([video.bytes for video in values]),
        "fps": _tally(f"{video.fps:.4g}" if video.fps else "unknown" for video in values),
        "sizes": _tally(f"{video.width} x {video.height}" for video in values),
        "codecs": _tally(video.codec for video in values),
    }


def spread(values: Sequence[float]) -> dict:
    """Smallest, median, mean, largest and a histogram; bins grow where a few values are far out."""
    if not values:
        return {"count": 0}
    low, high, median = min(values), max(values), statistics.median(values)
    whole = all(isinstance(value, int) for value in values)
    if whole and high - low < _BINS:
        edges = np.arange(low, high + 2)
    elif low > 0 and high > 20 * median:
        edges = np.geomspace(low, high, _BINS + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts, edges = np.histogram(values, edges)
    return {
        "count": len(values),
        "min": low,
        "median": median,
        "mean": sum(values) / len(values),
        "max": high,
        "edges": edges.tolist(),
        "histogram": counts.tolist(),
    }


def _tally(values: Iterable[str]) -> dict[str, int]:
    """The most frequent values, then `OTHER` for the rest."""
    counts = Counter(values)
    kept = dict(sorted(counts.most_common(_COUNTED_APART), key=lambda pair: (-pair[1], pair[0])))
    rest = counts.total() - sum(kept.values())
    return kept | ({OTHER: rest} if rest else {})


def find_duplicates(examples: Iterable[Example]) -> list[dict]:
    """Questions asked more than once about a video, with all answers that are given."""
    asked: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for example in examples:
        for turn in example.turns:
            key = example.video, turn.question.casefold()
            asked.setdefault(key, []).append((example.id, turn.answer))
    return [
        {
            "video": video,
            "question": question,
            "ids": [id for id, _ in several],
            "answers": [answer for _, answer in several],
        }
        for (video, question), several in asked.items()
        if len(several) > 1
    ]
