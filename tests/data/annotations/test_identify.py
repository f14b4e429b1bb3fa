"""A benchmark is known by its rows, whatever is added to their names; one's own rows are none."""

import json
import shutil
from pathlib import Path

import pytest

from rvllm_jax.data.annotations.read import read

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "annotations"
NAMES = {
    "msrvtt_qa": ("video6513", "158581"),
    "msvd_qa": ("bQJQGoJF7_k_162_169", "1201_30933"),
    "tgif_frameqa": ("tumblr_no73_250", "5"),
    "activitynet_qa": ("1QIUV7WYKXg", "v_1QIUV7WYKXg_3"),
    "": ("baby_reading", "baby_reading_0"),
}


@pytest.fixture
def benchmark(write):
    """benchmark(*(video, id)) -> that of a pair of files of such rows."""

    def benchmark(*rows):
        asked = [{"video_name": v, "question": "who?", "question_id": i} for v, i in rows]
        answers = [{"answer": "man", "type": "0", "question_id": i} for _, i in rows]
        return read(write({"q": asked, "a": answers})).parts[0].benchmark

    return benchmark


@pytest.mark.parametrize("change", ["{}", "{}.avi", "{}.MP4", "videos/{}", "a/b/{}.webm"])
@pytest.mark.parametrize("expected", NAMES)
def test_a_pair_of_files_is_known_by_its_names(expected, change, benchmark):
    name, identity = NAMES[expected]
    assert benchmark((change.format(name), identity)) == expected


def test_activitynets_videos_may_have_their_v(benchmark):
    name, identity = NAMES["activitynet_qa"]
    assert benchmark((f"v_{name}", identity)) == benchmark((f"v_{name}.mp4", identity))
    assert benchmark((f"v_{name}", identity)) == "activitynet_qa"


@pytest.mark.parametrize("expected", [name for name in NAMES if name])
def test_a_few_rows_of_ones_own_change_nothing_and_most_of_them_all(expected, benchmark):
    name, identity = NAMES[expected]
    rows = [(name, identity), (name, f"{identity}1"), (name, f"{identity}2")]
    assert benchmark(("mine", "odd"), *rows) == expected
    assert benchmark(*(("mine", f"odd{n}") for n in range(3)), *rows) == ""


def _asked(*questions, video="v_{:011d}"):
    return [
        {"video_name": video.format(n), "Q": question, "A": "It is."}
        for n, question in enumerate(questions)
    ]


ORDER = ["What happens first?", "Tell the sequence of events.", "What is blue?"]


@pytest.mark.parametrize(
    ("name", "rows", "kind"),
    [
        ("Benchmarking_QA_generic.json", _asked(*ORDER), "generic"),  # the name goes first
        ("my-temporal.json", _asked("What is blue?"), "temporal"),
        ("mine.json", _asked(*ORDER), "temporal"),
        ("generic_or_temporal.json", _asked(*ORDER), "temporal"),
        ("mine.json", _asked("What is blue?", "Who?", "What then?"), "generic"),
        ("mine.json", _asked(*ORDER) + _asked(*ORDER), "generic"),  # several of one video
        ("mine.json", _asked(*ORDER, video="v_{:011d}.mp4"), "temporal"),
    ],
)
def test_generative_rows_are_told_by_their_file_or_by_what_they_ask(name, rows, kind, write):
    found = read(write({name: rows}))
    assert found.parts[0].benchmark == f"video_text_generation/{kind}"
    assert {c.turns[0].kind for c in found.examples} == {kind}


def test_ones_own_generative_rows_are_no_benchmark(write):
    found = read(write({"mine.json": _asked(*ORDER, video="kitchen{}")}))
    assert found.parts[0].benchmark == "" and found.examples[0].turns[0].kind == "generative"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: the samples of real rows are not there")
@pytest.mark.parametrize("kind", ["generic", "temporal", "consistency"])
def test_real_generative_files_are_known_under_any_name(kind, tmp_path):
    given = shutil.copy(REAL / "video_text_generation" / f"{kind}_qa.json", tmp_path / "a.json")
    rows = json.loads(Path(given).read_text())
    assert read([given]).parts[0].benchmark == f"video_text_generation/{kind}"
    (tmp_path / "part.json").write_text(json.dumps(rows[::7]))
    assert read([tmp_path / "part.json"]).parts[0].benchmark == f"video_text_generation/{kind}"
