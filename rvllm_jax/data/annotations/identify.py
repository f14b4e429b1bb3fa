"""Which benchmark rows are of, by the names of their videos and questions, and by what they ask.

Names are compared without folder and suffix, and most rows decide: a suffix behind a video's name,
or a few rows of one's own, must not turn off the checks of counts and splits.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from rvllm_jax.data.annotations.formats import GENERATIVE
from rvllm_jax.data.annotations.recognise import AnnotationFile, most
from rvllm_jax.data.annotations.video_names import stem_of
from rvllm_jax.types import Example

_ANY, _ACTIVITYNET = r"(?s).*", r"v_.{11}"
# Format, names of videos, ids of questions -> benchmark; the first that most rows fit.
_BENCHMARKS = (
    ("activitynet", _ANY, _ANY, "activitynet_qa"),
    ("tgif", _ANY, _ANY, "tgif_frameqa"),
    ("msvd_msrvtt_original", r"video\d+", _ANY, "msrvtt_qa"),
    ("msvd_msrvtt_original", _ANY, _ANY, "msvd_qa"),
    ("zero_shot", r"video\d+", r"\d+", "msrvtt_qa"),
    ("zero_shot", r".{11}_\d+_\d+|vid\d+", r"\d+_\d+", "msvd_qa"),
    ("zero_shot", r"tumblr_.+", _ANY, "tgif_frameqa"),
)
_BY_NAME = ("generic", "temporal")  # whose rows have the same keys
# Nine of ten questions of temporal_qa.json have one of these, one in five of generic_qa.json's.
_ORDER = re.compile(
    r"\b(before|after|then|first|sequence|order|during|while|beginning|start|end|finally|next|when"
    r"|throughout|progress|steps?|initial\w*|last)\b",
    re.IGNORECASE,
)


def benchmark_of(file: AnnotationFile, examples: Sequence[Example]) -> str:
    """The benchmark whose published counts apply (annotations/published.py); "": none known."""
    for format, videos, ids, benchmark in _BENCHMARKS:
        fits = (_named(videos, e.video) and re.fullmatch(ids, e.id) for e in examples)
        if format == file.format and most(map(bool, fits)):
            return benchmark
    if file.format in GENERATIVE and most(_named(_ACTIVITYNET, e.video) for e in examples):
        return f"video_text_generation/{kind_of(file)}"
    return ""


def kind_of(file: AnnotationFile) -> str:
    """What rows of the generative formats ask for: "generic", "temporal" or "consistency".

    The first two have the same keys: the file's name tells them apart where it has one of the two
    words, else, of ActivityNet's videos, what is asked: a generic file asks several questions of
    most videos, and a temporal one asks for the order of events. "generative": neither.
    """
    if file.format == "consistency":
        return "consistency"
    words = set(re.findall("[a-z]+", file.paths[0].stem.lower())) & set(_BY_NAME)
    if len(words) == 1:
        return words.pop()
    asked = [
        (row["video_name"], row["Q"])
        for row in file.records
        if isinstance(row, dict)
        and isinstance(row.get("video_name"), str)
        and isinstance(row.get("Q"), str)
    ]
    if not most(_named(_ACTIVITYNET, video) for video, _ in asked):
        return "generative"
    repeated = len(asked) - len({video for video, _ in asked})
    if repeated > len(asked) / 10:
        return "generic"
    return "temporal" if most(bool(_ORDER.search(question)) for _, question in asked) else "generic"


def _named(pattern: str, video: str) -> bool:
    return re.fullmatch(pattern, PurePosixPath(stem_of(video)).name) is not None
