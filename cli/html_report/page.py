"""A report as data: what its template shows, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup

from cli.table_text import Block


@dataclass(frozen=True, slots=True)
class Fact:
    """A setting or a circumstance, and its value as text."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class FactGroup:
    """Facts under a heading."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """The figure that a report is about. value: as `41.72`; unit: as `%`. interval: as a phrase, empty for none.
    sentence: what it says."""

    label: str
    value: str
    unit: str
    interval: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    template: ClassVar[str] = "paragraph.html.jinja"
    text: str


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences, a line each."""

    template: ClassVar[str] = "notes.html.jinja"
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table. marked: (row, column) of the cells that stand out. folded: whether it is shown when asked for."""

    template: ClassVar[str] = "table.html.jinja"
    block: Block
    marked: frozenset[tuple[int, int]] = frozenset()
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture. drawn: an `<svg>` element. alt: what it shows, for those who do not see it. on_paper: whether it
    brings a white background of its own."""

    template: ClassVar[str] = "chart.html.jinja"
    drawn: Markup
    alt: str
    caption: str
    on_paper: bool = False


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures side by side where there is room."""

    template: ClassVar[str] = "gallery.html.jinja"
    title: str
    pictures: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command to copy. text: what it is for."""

    template: ClassVar[str] = "command.html.jinja"
    text: str
    line: str


Part = Paragraph | Notes | Table | Chart | Gallery | Command


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what follows it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Its identifier on the page."""
        return "-".join("".join(sign if sign.isalnum() else " " for sign in self.title.lower()).split())


@dataclass(frozen=True, slots=True)
class Page:
    """A report. kind: as `Evaluation`. title: what was measured, on what. highlights: the few facts that matter most.
    settings: all that the numbers depend on."""

    kind: str
    title: str
    created: str
    headline: Headline | None
    highlights: tuple[Fact, ...]
    settings: tuple[FactGroup, ...]
    sections: tuple[Section, ...]
    creator: str
