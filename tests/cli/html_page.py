"""A report as a reader without a browser finds it: its tables, its text, its elements."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "link", "img", "source"}
"""Elements that have no end."""


@dataclass
class Table:
    """label: what it is announced as. rows: the header first."""

    label: str
    rows: list[list[str]] = field(default_factory=list)

    def column(self, name: str) -> dict[str, str]:
        """Of a header's name, by the row's first cell."""
        place = self.rows[0].index(name)
        return {row[0]: row[place] for row in self.rows[1:]}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self._cell = False
        self._label = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag not in EMPTY:
            self.open.append(tag)
        if given.get("role") == "region":
            self._label = given["aria-label"] or ""
        if tag == "table":
            self.tables.append(Table(self._label))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self.tables[-1].rows[-1].append("")
            self._cell = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag, tag
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self.tables[-1].rows[-1][-1] += data


@dataclass(frozen=True)
class HtmlPage:
    """What is on it. elements: name and attributes of each."""

    tables: list[Table]
    elements: list[tuple[str, dict[str, str | None]]]
    text: str

    def pictures(self, kind: str = "") -> list[dict[str, str | None]]:
        """The attributes of those whose data is of a kind, as `image/webp`."""
        found = [given for name, given in self.elements if name == "img"]
        return [given for given in found if (given["src"] or "").startswith(f"data:{kind}")]

    def table(self, words: str) -> Table:
        """The one whose label holds these words."""
        (found,) = (table for table in self.tables if words in table.label)
        return found


def read_page(file: Path) -> HtmlPage:
    """Read one; fails where an element is not closed, or closed by another's end."""
    reader = _Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open, reader.open
    return HtmlPage(reader.tables, reader.elements, " ".join("".join(reader.text).split()))
