"""report.html: one page that needs nothing beside it, made of report.json and the thumbnails."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from rvllm_jax.data.prepare.charts import STYLE, bars, clock, histogram, size
from rvllm_jax.data.prepare.findings import DONE, Findings

_LISTED = 200  # lines of a list that the page shows; report.json has all


def render(report: dict, findings: Findings) -> str:
    """The page of a preparation's report."""
    sections = [
        _header(report),
        _tiles(report),
        _benchmarks(report),
        _thumbnails(findings),
        _charts(report),
        *_lists(report),
    ]
    title = f"Preparation of {escape(report['split'])}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style><main>{''.join(sections)}</main></html>\n"
    )


def _header(report: dict) -> str:
    kind = "good" if report["code"] == DONE else "bad"
    lacks = report["partial"] if report["allow_partial"] else ()  # else the verdict says so
    partial = "".join(f"<p class=warn>Partial: {_text(lack)}.</p>" for lack in lacks)
    stored = "stored" if report["stored"] else "no frames were stored"
    options = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in report["options"].items()
    )
    return (
        f"<h1>Preparation of <em>{_text(report['split'])}</em></h1>"
        f"<p class=sub>{_text(report['format'])} annotations; {_text(options)}; {stored}</p>"
        f"<p class='verdict {kind}'><b>{'Ready' if kind == 'good' else 'Not ready'}</b> "
        f"{_text(report['verdict'])} <small>exit code {report['code']}</small></p>{partial}"
    )


def _tiles(report: dict) -> str:
    files, rows, guess = report["files"], report["annotations"], report["estimate"]
    found = len(report["videos"]) + len(report["set_aside"].keys() - report["videos"].keys())
    tiles = [
        ("videos found", f"{found:,}", f"of {found + len(report['missing']):,} named"),
        ("usable", f"{report['usable_videos']:,}", f"{report['usable_conversations']:,} rows"),
        ("questions", f"{rows['questions']:,}", f"in {rows['conversations']:,} rows"),
        ("duration", clock(files["hours"] * 3600), f"{size(files['bytes'])} of files"),
        ("estimated", size(guess["bytes"]), f"{guess['frames']:,} frames"),
    ]
    if report["stored"]:
        stored = report["stored"]
        tiles.append(("stored", size(stored["bytes"]), f"{stored['frames']:,} frames"))
    lost = len(report["set_aside"]) + len(report["missing"])
    tiles.append(("unusable videos", f"{lost:,}", f"{len(report['missing']):,} of them missing"))
    return "<div class=tiles>" + "".join(
        f"<div class=tile><span>{label}</span><b>{value}</b><small>{more}</small></div>"
        for label, value, more in tiles
    ) + "</div>"  # fmt: skip


def _benchmarks(report: dict) -> str:
    rows = []
    for part in report["parts"]:
        published = part["published"]
        expected = "none known"
        if published:
            videos = "" if published["videos"] is None else f" on {published['videos']:,}"
            expected = f"{published['questions']:,}{videos}"
        state = "bad" if part["lacks"] else "good" if published else ""
        rows.append(
            (
                "<br>".join(_name(path) for path in part["paths"]),
                _name(part["benchmark"] or part["format"]),
                f"{part['rows']:,}",
                f"{part['read']:,} on {part['videos']:,}",
                f"{part['usable_rows']:,} on {part['usable_videos']:,}",
                f"<span class={state or 'plain'}>{expected}</span>",
            )
        )
    heads = ("file", "benchmark", "rows", "read, on videos", "usable, on videos", "published")
    return f"<h2>Annotations</h2>{_table(heads, rows)}"


def _thumbnails(findings: Findings) -> str:
    """Frames beside a question, so that annotations of other videos are seen at once."""
    if not findings.survey.thumbnails:
        return ""
    first = {}
    for example in findings.annotations.examples:
        name = findings.found.name_of.get(example.video)
        first.setdefault(name, example.turns[0])
    figures = []
    for name, thumbnail in findings.survey.thumbnails.items():
        info, turn = findings.survey.info[name], first[name]
        image = base64.b64encode(thumbnail.jpeg).decode()
        figures.append(
            f'<figure><img src="data:image/jpeg;base64,{image}" alt="" loading=lazy>'
            f"<figcaption><b>{_text(name)}</b><small>{info.width} x {info.height}, "
            f"{info.fps:.4g} fps, {clock(info.seconds)}</small>"
            f"<q>{_text(turn.question, 160)}</q><i>{_text(turn.answer, 160)}</i>"
            "</figcaption></figure>"
        )
    return f"<h2>Videos and their first question</h2><div class=films>{''.join(figures)}</div>"


def _charts(report: dict) -> str:
    files, rows = report["files"], report["annotations"]
    charts = [
        histogram("Duration", files["seconds"], clock),
        histogram("File size", files["file_bytes"], size),
        histogram("Question length (words)", rows["question_words"], _number),
        histogram("Answer length (words)", rows["answer_words"], _number),
        bars("Frame rate (frames a second)", files["fps"]),
        bars("Size as shown (pixels)", files["sizes"]),
        bars("Codec", files["codecs"]),
        bars("Type of question", rows["types"]),
        bars("Most frequent answers", rows["answers"]),
    ]
    return f"<h2>What they are like</h2><div class=charts>{''.join(charts)}</div>"


def _lists(report: dict) -> list[str]:
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
    none = "".join(f"<li>{title}" for title, _, lines in lists if not lines)
    empty = f"<h2>None of these</h2><ul class=none>{none}</ul>" if none else ""
    return [_list(title, heads, list(lines)) for title, heads, lines in lists if lines] + [empty]


def _list(title: str, heads: Sequence[str], rows: Sequence[Sequence]) -> str:
    cells = [
        [_name(str(row[0])), *(_text(cell, 400) for cell in row[1:])] for row in rows[:_LISTED]
    ]
    rest = len(rows) - len(cells)
    more = f"<p class=sub>{rest:,} more are in report.json.</p>" if rest else ""
    return (
        f"<details{' open' if len(rows) <= 20 else ''}><summary><h2>{title} "
        f"<span class=count>{len(rows):,}</span></h2></summary>{_table(heads, cells)}{more}"
        "</details>"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{name}" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    return f"<div class=scroll><table><tr>{head}{body}</table></div>"


def _text(value: object, longest: int = 0) -> str:
    text = str(value)
    if longest and len(text) > longest:
        text = text[: longest - 1] + "…"
    return escape(text)


def _name(name: str) -> str:
    """A path, which may be broken where a person would break it."""
    return _text(name).replace("/", "/<wbr>")


def _number(value: float) -> str:
    return f"{value:,.4g}"
