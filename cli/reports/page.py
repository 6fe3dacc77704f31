"""A report as data, what its template shows in order; and from there to `report.html`: one file, all text escaped,
every picture within it."""

import base64
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cli.reports.tables import Block
from featstore.files import AGAIN, write_whole
from featstore.store.schema import creator_version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"

Facts = Mapping[str, str]
"""Settings or circumstances, by name, and their values as text."""


@dataclass(frozen=True, slots=True)
class FactGroup:
    """Facts under a heading."""

    title: str
    facts: Facts


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
class Picture:
    """A picture within the page. address: all of it, as a data URI. alt: what it shows, for those who do not see it.
    on_paper: whether it brings a background of its own; else it is drawn in black, which a dark page turns over."""

    template: ClassVar[str] = "picture.html.jinja"
    address: str
    alt: str
    caption: str
    on_paper: bool = True


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures side by side where there is room."""

    template: ClassVar[str] = "gallery.html.jinja"
    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command to copy. text: what it is for."""

    template: ClassVar[str] = "command.html.jinja"
    text: str
    line: str


Part = Paragraph | Notes | Table | Picture | Gallery | Command


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
    headline: Headline
    highlights: Facts
    settings: Sequence[FactGroup]
    sections: Sequence[Section]


def drawn(figure: "Figure", alt: str, caption: str) -> Picture:
    """A chart as SVG, whose texts stay text."""
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dualsd"}):
        address = _address(figure, "svg", "image/svg+xml", metadata={"Date": None})
    return Picture(address, alt, caption, on_paper=figure.patch.get_visible())


def photographed(figure: "Figure", alt: str, caption: str) -> Picture:
    """Photographs with marks on them, as pixels."""
    return Picture(_address(figure, "webp", "image/webp", pil_kwargs={"quality": 82}), alt, caption)


def _address(figure: "Figure", form: str, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format=form, **options)
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def render(page: Page) -> str:
    """The whole page. Text is escaped; only the stylesheet is markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("page.html.jinja").render(page=page, style=style, creator=creator_version())


def prose(text: str) -> Markup:
    """Text whose parts in backquotes are code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def write_report(page: Page, folder: Path, way_on: str = AGAIN) -> Path:
    """Write `report.html`, whole or not at all.

    Args:
        page: What is on it.
        folder: Where; it must be there.
        way_on: What to do where the disk was full.

    Returns:
        The file.

    Raises:
        What `write_whole` raises.
    """
    file = folder / FILE
    write_whole(file, render(page).encode("utf-8", errors="replace"), way_on)
    return file


def make_again(run: Path) -> str:
    """What to do when there is room for the page of a run that is kept: not what made the run."""
    return f"make the page with `{report_command(run)}`"


def report_command(run: Path) -> str:
    """What makes the page of a run again."""
    return f"dualsd report {shlex.quote(str(run))}"
