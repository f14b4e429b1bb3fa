"""Whether a model was trained on the videos that it is asked about.

Names are compared as the datasets write them: without folder, suffix and YouTube's "v_", and a
clip cut out of a video (MSVD's NAME_START_END) by the video that it is of. VideoInstruct100K, the
text generation benchmark and ActivityNet-QA all name ActivityNet's videos so.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from rvllm_jax.data.annotations.video_names import stem_of
from rvllm_jax.evaluation.answers.questions import Question

_YOUTUBE = r"[\w-]{11}"


def source_of(video: str) -> str:
    """The video that a file, or a clip out of one, is of.

    >>> source_of("test/v_p1QGn0IzfW0.mp4"), source_of("-4wsuPCjDBc_5_15.avi"), source_of("video7")
    ('p1QGn0IzfW0', '-4wsuPCjDBc', 'video7')
    """
    name = PurePosixPath(stem_of(video)).name
    match = re.fullmatch(rf"(?:v_)?({_YOUTUBE})(?:_\d+_\d+)?", name)
    return match[1] if match else name


def overlap(questions: Sequence[Question], training: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which of the questions' videos a model was trained on.

    training: the content of training_videos.json, `{"videos": [name], "unknown": [source]}`; None
    where there is none.

    Returns `{"known": whether the training videos are, "complete": whether all are, "videos":
    [name], "questions": n, "told": in words}`; the names are those of the questions' videos, None
    where nothing is known.
    """
    if training is None:
        text = (
            "the training videos of this model are not known: nothing says that it did not see "
            "the videos of this benchmark"
        )
        return dict(known=False, complete=False, videos=None, questions=None, told=text)
    seen = {source_of(video) for video in training["videos"]}
    asked = dict.fromkeys(question.video for question in questions)
    videos = [video for video in asked if source_of(video) in seen]
    count = sum(question.video in set(videos) for question in questions)
    text = (
        f"{len(videos)} of {len(asked)} videos, with {count} of {len(questions)} questions, are "
        f"among the {len(seen)} training videos"
    )
    if training["unknown"]:
        text += (
            "; what was shown to the weights that its training started from is not known: "
            f"{', '.join(training['unknown'])}"
        )
    complete = not training["unknown"]
    return dict(known=True, complete=complete, videos=videos, questions=count, told=text)
