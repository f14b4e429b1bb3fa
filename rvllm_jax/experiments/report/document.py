"""A report as a list of parts, written as Markdown and as one HTML page that needs nothing else.

report.md.jinja and report.html.jinja, beside this file, are what a part looks like in either.
"""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rvllm_jax.system import page
from rvllm_jax.system.atomic import write_together
from rvllm_jax.system.errors import HERE_AGAIN


@dataclasses.dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"  # by which the templates choose
    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `warning`: it must not be overlooked."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """`content`: a PNG or a JPEG. In Markdown only its `title` stands."""

    kind: ClassVar[str] = "picture"
    title: str
    content: bytes

    @property
    def url(self) -> str:
        """The picture itself, so that the page fetches nothing."""
        kind = "png" if self.content.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


Part = Heading | Text | Table | Picture


def write(folder: Path, title: str, parts: Sequence[Part]) -> None:
    """Writes report.md and report.html into `folder`: both, or neither."""
    contents = {}
    for name in ("report.md", "report.html"):
        text = page.render(f"experiments/report/{name}.jinja", title=title, parts=parts)
        contents[name] = text.encode(errors="replace")
    write_together(folder, contents, advice=HERE_AGAIN)
