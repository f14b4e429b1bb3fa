"""The page of a report: whole by itself, and every name in it is text."""

import html.parser
import json

import numpy as np
import pytest

from rvllm_jax.data.prepare.options import PrepareOptions
from rvllm_jax.data.prepare.run import prepare
from rvllm_jax.data.video import encode

EVIL = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for name in ("a", "b"):
        encode.write(folder / f"{name}.mp4", np.zeros((4, 16, 16, 3), np.uint8), fps=5)
    (folder / "b&amp;'.mp4").write_bytes(b"no video")
    rows = [{"q": f"Is it {EVIL}?", "a": EVIL, "video_id": name} for name in ("a", "b")]
    rows += [{"q": "x", "a": "y", "video_id": name} for name in ("b&amp;'", "<b>lost")]
    rows += [{"q": "x", "a": " ", "video_id": EVIL}, {"q": "x", "a": "z", "video_id": "<b>lost"}]
    encode.write(folder / "lone.mp4", np.zeros((4, 16, 16, 3), np.uint8), fps=5)
    rows += [{"q": "x", "a": "y", "video_id": f"lost{number:03d}"} for number in range(300)]
    (folder / "rows.json").write_text(json.dumps(rows))
    prepare(
        folder, [folder / "rows.json"], folder / "out", "train",
        PrepareOptions(short_side=16, check=True), say=lambda line: None,
    )  # fmt: skip
    return Page((folder / "out" / "report.html").read_text())


def test_it_needs_nothing_beside_itself(page):
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert len(sources) == 2 and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_names_questions_and_answers_are_shown_as_they_are(page):
    for shown in (f"Is it {EVIL}?", EVIL, "b&amp;'", "<b>lost", "not a readable video"):
        assert shown in page.text


def test_long_lists_are_cut_and_say_so(page):
    assert "lost100" in page.text and "lost299" not in page.text
    assert "101 more are in report.json" in page.text


def test_it_shows_the_verdict_and_every_list_with_its_count(page):
    assert "Not ready" in page.text and "exit code 3" in page.text
    assert "Annotations without video 301" in page.text and "Rows set aside 1" in page.text
    assert "None of these" in page.text and "Rows that got another id" in page.text
    assert "Videos without annotation 1" in page.text and "lone.mp4" in page.text
    assert "Duplicated questions 1" in page.text


def test_it_draws_what_the_files_and_the_answers_are_like(page):
    charts = ("Duration", "File size", "Frame rate (frames a second)", "Size as shown (pixels)")
    for chart in (*charts, "Answer length (words)", "Most frequent answers"):
        assert chart in page.text, chart
