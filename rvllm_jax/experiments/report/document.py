"""A report as a list of parts, written as Markdown and as one HTML page that needs nothing else."""

import base64
import dataclasses
from collections.abc import Sequence
from html import escape

from rvllm_jax.system.page import style


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `warning`: it must not be overlooked."""

    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """`content`: a PNG or a JPEG. In Markdown only its `title` stands."""

    title: str
    content: bytes


Part = Heading | Text | Table | Picture


def markdown(title: str, parts: Sequence[Part]) -> str:
    return "\n\n".join([f"# {title}", *map(_markdown, parts)]) + "\n"


def html(title: str, parts: Sequence[Part]) -> str:
    """The page; pictures are inlined, nothing is fetched, and no text can be markup."""
    body = "".join(map(_html, parts))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style()}"
        "main>img{max-width:100%;border-radius:10px}</style>"
        f"<main><h1>{escape(title)}</h1>{body}</main></html>\n"
    )


def _markdown(part: Part) -> str:
    match part:
        case Heading(text):
            return f"## {text}"
        case Text(text, warning):
            return f"**{text}**" if warning else text
        case Table(heads, rows):
            lines = [heads, ["---"] * len(heads), *rows]
            cells = ([_cell(cell) for cell in line] for line in lines)
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Picture(title, _):
            return f"({title}: in report.html)"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _html(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text, warning):
            return f"<p class={'warn' if warning else 'sub'}>{escape(text)}</p>"
        case Table(heads, rows):
            head = "".join(f"<th>{escape(name)}" for name in heads)
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in row) for row in rows
            )
            return f"<div class=scroll><table><tr>{head}{body}</table></div>"
        case Picture(title, content):
            kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
            data = base64.b64encode(content).decode()
            return f'<img src="data:image/{kind};base64,{data}" alt="{escape(title)}">'
