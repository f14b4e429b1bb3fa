"""Videos by the names that the datasets give them."""

import pytest

from rvllm_jax.evaluation.answers.questions import Question
from rvllm_jax.evaluation.leakage import overlap, source_of
from rvllm_jax.types import Turn


@pytest.mark.parametrize(
    "benchmark, training",
    [
        ("v_p1QGn0IzfW0.mp4", "v_p1QGn0IzfW0"),  # text generation, VideoInstruct100K
        ("p1QGn0IzfW0", "v_p1QGn0IzfW0.mkv"),  # ActivityNet-QA names it without v_
        ("-4wsuPCjDBc_5_15.avi", "v_-4wsuPCjDBc.mp4"),  # a clip of MSVD, out of a whole video
        ("folder/tumblr_ab.gif", "tumblr_ab"),
        ("video7010.mp4", "video7010"),
    ],
)
def test_a_video_is_recognised_under_its_other_names(benchmark, training):
    assert source_of(benchmark) == source_of(training)


def test_other_videos_are_not():
    names = ("v_p1QGn0IzfW0", "v_p1QGn0Izfw0", "video7", "video70", "test-00001", "train-00001")
    assert len({source_of(name) for name in names}) == len(names)


def questions(*videos):
    return [Question(str(n), video, Turn("Why?", "So.")) for n, video in enumerate(videos)]


def test_overlap_names_videos_and_counts_questions():
    asked = questions("v_p1QGn0IzfW0.mp4", "v_p1QGn0IzfW0.mp4", "v_UZm05CvtxkA.mp4")
    found = overlap(asked, {"videos": ["p1QGn0IzfW0", "other"], "unknown": []})
    assert found["known"] and found["complete"]
    assert (found["videos"], found["questions"]) == (["v_p1QGn0IzfW0.mp4"], 2)
    assert "1 of 2 videos, with 2 of 3 questions" in found["told"]
    assert overlap(asked, {"videos": ["other"], "unknown": []})["videos"] == []


def test_what_is_not_known_is_said():
    asked = questions("a.mp4")
    nothing = overlap(asked, None)
    assert not nothing["known"] and nothing["videos"] is None and "not known" in nothing["told"]
    part = overlap(asked, {"videos": [], "unknown": ["weights/llava"]})
    assert part["known"] and not part["complete"]
    assert "weights/llava" in part["told"] and "not known" in part["told"]
