"""From a report as data to `report.html`: one file, all text escaped."""

import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cli.html_report.page import Page
from featstore.files import AGAIN, write_whole

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str:
    """The whole page. Text is escaped; only the stylesheet and drawn pictures are markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("page.html.jinja").render(page=page, style=style)


def prose(text: str) -> Markup:
    """Text whose parts in backquotes are code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one is left over: it is the text's own
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def write_report(page: Page, folder: Path, way_on: str = AGAIN) -> Path:
    """Write `report.html` into a folder that is there, whole or not at all, and return where. way_on: what to do where
    the disk was full. Raises what `write_whole` raises."""
    file = folder / FILE
    write_whole(file, render(page).encode("utf-8", errors="replace"), way_on)
    return file


def make_again(run: Path) -> str:
    """What to do when there is room for the page of a run that is kept: not what made the run."""
    return f"make the page with `{report_command(run)}`"


def report_command(run: Path) -> str:
    """What makes the page of a run again."""
    return f"dualsd report {shlex.quote(str(run))}"
