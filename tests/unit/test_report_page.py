"""A page is one file that stands alone, and says what it was given, as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from phenomhpc.report import Picture, Section, Table, heatmap_figure, render_report, themed

PNG = heatmap_figure([[1.0, 0.0], [0.0, 1.0]], ["a", "b"]).png()


class _Page(HTMLParser):
    """Tags with their attributes, in order; text per tag stack."""

    void = frozenset({"meta", "link", "img", "source"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.stack:
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def _sections() -> list[Section]:
    table = Table(
        caption="Scores", columns=("what", "n", "share"), rows=(("HuMAP", 12345, 0.5), ("<b>", None, ("0.1", "0 to 1")))
    )
    return [
        Section(
            title="First & foremost",
            text=("Plain <words>.",),
            facts=(("wells", "3"),),
            tables=(table,),
            details=("Formula",),
        ),
        Section(title="Second", pictures=(Picture(png=PNG, alt='A "map" of two', caption="Two genes", dark=PNG),)),
    ]


def test_a_page_refers_to_nothing_outside_itself_and_runs_no_script() -> None:
    html = render_report("Title", _sections())
    page = _Page(html)
    assert page.all("script") == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")]
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", words)


def test_words_are_text_not_markup_and_every_cell_is_there() -> None:
    page = _Page(render_report("A <i>title</i>", _sections(), lead="One & only.", made="today"))
    for words in (
        "A <i>title</i>",
        "One & only.",
        "today",
        "Plain <words>.",
        "First & foremost",
        "<b>",
        "Formula",
        "Two genes",
    ):
        assert words in page.text
    for cell in ("12,345", "0.500", "–", "0.1", "0 to 1"):
        assert cell in page.text
    assert page.all("i") == page.all("b") == []


def test_pictures_have_words_sizes_and_a_dark_twin_and_tables_have_heads() -> None:
    page = _Page(render_report("Title", _sections()))
    (image,) = page.all("img")
    assert image["alt"] == 'A "map" of two'
    assert int(image["width"] or 0) > 100 and int(image["height"] or 0) > 100
    assert page.all("source")[0]["media"] == "(prefers-color-scheme: dark)"
    assert [attrs["scope"] for attrs in page.all("th")] == ["col"] * 3 + ["row"] * 2
    assert page.all("html") == [{"lang": "en"}]
    targets = {attrs["id"] for attrs in page.all("section")}
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == ["#content", "#1-first-foremost", "#2-second"]
    assert targets == {"1-first-foremost", "2-second"}


def test_a_page_of_nothing_but_a_title_stands() -> None:
    assert "Empty" in _Page(render_report("Empty", [])).text


def test_a_themed_picture_is_drawn_for_both_kinds_of_page() -> None:
    picture = themed(heatmap_figure, [[1.0, 0.0], [0.0, 1.0]], ["a", "b"], alt="two")
    assert picture.png == PNG and picture.dark not in (None, PNG)
