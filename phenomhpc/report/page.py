"""Sections to one self-contained HTML page: no request to any host, pictures inside, light and dark.

A page has a script only where a section has something to search: neighbours.js, allowed by its digest alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from phenomhpc import __version__
from phenomhpc.report.neighbours import Neighbours
from phenomhpc.report.theme import Drawing

Cell = str | int | float | None | tuple[str, str]
PIXELS_PER_CSS_PIXEL = 1.65  # pictures are drawn finer than they are shown, for dense screens


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG with words for those who cannot see it; `dark` is shown instead where the reader prefers dark pages.

    name, svg: of the files that are written beside the page, where that is done
    """

    png: bytes
    alt: str
    caption: str = ""
    dark: bytes | None = None
    name: str = ""
    svg: bytes | None = None


def themed(draw: Callable[..., Drawing], *values: Any, alt: str, caption: str = "", name: str = "") -> Picture:
    """A picture drawn twice, by draw(*values, theme="light") and "dark"; with a name the light one is an SVG file as well."""
    light = draw(*values, theme="light")
    return Picture(
        png=light.png(),
        dark=draw(*values, theme="dark").png(),
        alt=alt,
        caption=caption,
        name=name,
        svg=light.svg() if name else None,
    )


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; the first column names the row.

    A cell of two texts is shown as one with a small one below it.  numeric: all columns but the first are right-aligned.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page: plain words, facts (name, value), a search, pictures, tables, and `details` folded away below.

    Nothing is read as HTML.
    """

    title: str
    text: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    search: Neighbours | None = None
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    details: tuple[str, ...] = ()


def render_report(title: str, sections: Sequence[Section], *, lead: str = "", made: str = "") -> str:
    """The page.  title, and lead (one sentence below it), in plain words; made: when, as it is to be read."""
    slugs = [
        f"{number}-{re.sub(r'[^a-z0-9]+', '-', part.title.lower()).strip('-')}" for number, part in _numbered(sections)
    ]
    search = next((part.search for part in sections if part.search is not None), None)
    script = _script() if search is not None else ""
    return str(
        template("report.html.j2").render(
            title=title,
            lead=lead,
            made=made,
            version=__version__,
            sections=list(zip(slugs, sections, strict=True)),
            neighbours=script_json(search.value()) if search is not None else "",
            script=script,
            script_digest=script_digest(script),
        )
    )


@cache
def _script() -> str:
    return files("phenomhpc.report").joinpath("neighbours.js").read_text()


def script_digest(script: str) -> str:
    """What a page's policy names a script by that may run: the base64 of its SHA-256."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element, whatever the texts in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _numbered(sections: Sequence[Section]) -> list[tuple[int, Section]]:
    return list(enumerate(sections, start=1))


def data_uri(png: bytes) -> str:
    """A PNG as it can stand in a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels of the page, from the header (PNG specification, IHDR)."""
    width, height = int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
    return round(width / PIXELS_PER_CSS_PIXEL), round(height / PIXELS_PER_CSS_PIXEL)


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else value


def template(name: str) -> Any:
    """A template of this package (page.html.j2 is what all pages have in common); texts are escaped, undefined names refused."""
    return _environment().get_template(name)


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("phenomhpc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "png_size": png_size, "cell": _cell}
    return environment
