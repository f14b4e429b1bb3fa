"""Pages of HTML that need nothing beside them: one style, and no text in them can be markup."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_PACKAGE = Path(__file__).parents[1]


def render(template: str, **values: Any) -> str:
    """The page that a template makes of `values`.

    template: its path in the package, such as "data/prepare/report.html.jinja"; it extends
        "system/templates/page.html.jinja". It has the filters `clock`, `size`, `thousands` and
        `shorten`. A value that it names and is not given raises jinja2.UndefinedError.
    """
    return _environment().get_template(template).render(**values)


def clock(seconds: float) -> str:
    """A duration as a person says it: 9.7 s, 4:05, 2:03:09."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def count(number: int) -> str:
    """A number of things: whole below a million, 6,738.4 million above."""
    return f"{number:,}" if number < 1e6 else f"{number / 1e6:,.1f} million"


def shorten(value: object, longest: int) -> str:
    """`value` as a text of at most `longest` characters."""
    text = str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2  # not above: a command that only may write a page would start later by a tenth

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PACKAGE),
        autoescape=lambda template: ".html" in template,  # text of .md is no markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"clock": clock, "size": size, "shorten": shorten, "thousands": "{:,}".format}
    environment.filters.update(filters)
    return environment
