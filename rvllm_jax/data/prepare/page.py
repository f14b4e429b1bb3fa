"""report.html: one page that needs nothing beside it, made of report.json and the thumbnails."""

import base64
from collections.abc import Iterator

from rvllm_jax.data.prepare.findings import DONE, Findings
from rvllm_jax.data.prepare.tallies import OTHER
from rvllm_jax.system import page
from rvllm_jax.types import Turn, VideoInfo

_LISTED = 200  # lines of a list that the page shows; report.json has all

# What report.json lists: a title, the columns' heads, and lines of as many cells.
ReportList = tuple[str, tuple[str, ...], list[tuple]]


def render(report: dict, findings: Findings) -> str:
    """The page of a preparation's report; its names may hold bytes that are no UTF-8."""
    return page.render(
        "data/prepare/report.html.jinja",
        title=f"Preparation of {report['split']}",
        report=report,
        ready=report["code"] == DONE,
        videos_found=len(report["videos"].keys() | report["set_aside"].keys()),
        thumbnails=list(_thumbnails(findings)),
        lists=_lists(report),
        listed=_LISTED,
        other=OTHER,
        clock=page.clock,
        size=page.size,
        number="{:,.4g}".format,
    )


def _thumbnails(findings: Findings) -> Iterator[tuple[str, str, VideoInfo, Turn]]:
    """A video's name, a frame of it (a JPEG in base64), what it is, and its first question."""
    first: dict[str | None, Turn] = {}
    for example in findings.annotations.examples:
        first.setdefault(findings.videos.name_of.get(example.video), example.turns[0])
    for name, thumbnail in findings.survey.thumbnails.items():
        jpeg = base64.b64encode(thumbnail.jpeg).decode()
        yield name, jpeg, findings.survey.info[name], first[name]


def _lists(report: dict) -> list[ReportList]:
    rows = report["annotations"]
    duplicates = [
        (item["video"], item["question"], ", ".join(item["ids"]), " | ".join(item["answers"]))
        for item in rows["duplicates"]
    ]
    lists = [
        ("Videos set aside", ("video", "reason"), report["set_aside"].items()),
        ("Videos used with a remark", ("video", "remark"), report["notes"].items()),
        ("Annotations without video", ("video", "rows"), report["missing"].items()),
        ("Videos without annotation", ("video",), [(name,) for name in report["unused"]]),
        ("Rows set aside", ("row", "reason"), rows["rows_set_aside"].items()),
        ("Rows about no video", ("row", "about"), rows["rows_without_video"].items()),
        ("Rows that got another id", ("row", "id"), rows["rows_renamed"].items()),
        ("Duplicated questions", ("video", "question", "ids", "answers"), duplicates),
    ]
    return [(title, heads, list(lines)) for title, heads, lines in lists]
