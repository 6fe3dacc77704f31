"""A report as data, what its template shows in order; and from there to `report.html`: one file, all text escaped,
every picture within it. Settings stand there as a reader finds them: a name in words, a value as text, in groups."""

import base64
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from warnings import catch_warnings, filterwarnings

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from cli.reports.tables import Block
from featstore.files import AGAIN, write_whole
from featstore.store.schema import creator_version
from matcher.pairs import Pairs

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"

Facts = Mapping[str, object]
"""Settings or circumstances by name; what is None is not shown, the parts of a list are joined by commas."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The figure that a report is about. value: as `41.72`; unit: as `%`. interval: as a phrase, empty for none.
    sentence: what it says."""

    label: str
    value: str
    sentence: str
    unit: str = ""
    interval: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A figure within the page, as SVG whose texts stay text.

    Args:
        figure: What is drawn. Without a background it is in black, which a dark page turns over.
        alt: What it shows, for those who do not see it.
        caption: Below it.
        tables: Of its numbers, where it is a section of its own.
        narrow: What a telephone shows in its place.
    """

    template: ClassVar[str] = "picture.html.jinja"
    figure: Figure
    alt: str
    caption: str
    tables: Sequence[Block] = ()
    narrow: Figure | None = None

    @property
    def on_paper(self) -> bool:
        """Whether it brings a background of its own."""
        return self.figure.patch.get_visible()

    def address(self, figure: Figure) -> str:
        """All of its figure, as a data URI."""
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dualsd"}), catch_warnings():
            filterwarnings("ignore", "Glyph", UserWarning)  # texts stay texts: a browser has letters that we lack
            return _address(figure, "svg", "image/svg+xml", metadata={"Date": None})


class Photographs(Chart):
    """Photographs with marks on them, as pixels."""

    on_paper = True

    def address(self, figure: Figure) -> str:
        """All of its figure, as a data URI."""
        return _address(figure, "webp", "image/webp", pil_kwargs={"quality": 70})


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures side by side where there is room."""

    template: ClassVar[str] = "gallery.html.jinja"
    title: str
    pictures: Sequence[Chart]


@dataclass(frozen=True, slots=True)
class Command:
    """A command to copy. text: what it is for."""

    template: ClassVar[str] = "command.html.jinja"
    text: str
    line: str


Part = str | Block | Chart | Gallery | Command | None
"""Of a section; a text is a paragraph, and None is left out."""


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Args:
        kind: As `Evaluation`.
        title: What was measured, on what.
        origin: When, where and by what it was made, as run folders have it.
        headline: Its main figure.
        highlights: The few facts that matter most.
        settings: All that the numbers depend on, by the titles of groups.
        sections: By their titles.
    """

    kind: str
    title: str
    origin: Mapping[str, Any]
    headline: Headline
    highlights: Facts
    settings: Mapping[str, Facts]
    sections: Mapping[str, Sequence[Part]]

    @property
    def created(self) -> str | None:
        """As the page says it."""
        return when(self.origin.get("created"))

    @property
    def groups(self) -> Mapping[str, Facts]:
        """All settings, and with which versions it was made."""
        return {**self.settings, "Origin and versions": origin_facts(self.origin)}


def _address(figure: Figure, form: str, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format=form, **options)
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _prose(text: str) -> Markup:
    """Text whose parts in backquotes are code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _anchor(title: str) -> str:
    """A section's identifier on the page."""
    return "-".join(re.findall(r"[^\W_]+", title.lower()))


def write_report(page: Page, folder: Path, way_on: str = AGAIN) -> Path:
    """Write `report.html`, whole or not at all. Text is escaped; only the stylesheet is markup.

    Args:
        page: What is on it.
        folder: Where; it must be there.
        way_on: What to do where the disk was full.

    Returns:
        The file.

    Raises:
        What `write_whole` raises.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": _prose, "anchor": _anchor, "shown": _shown}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    text = environment.get_template("page.html.jinja").render(page=page, style=style, creator=creator_version())
    write_whole(folder / FILE, text.encode("utf-8", errors="replace"), way_on)
    return folder / FILE


def make_again(run: Path) -> str:
    """What to do when there is room for the page of a run that is kept: not what made the run."""
    return f"make the page with `{report_command(run)}`"


def report_command(run: Path) -> str:
    """What makes the page of a run again."""
    return f"dualsd report {shlex.quote(str(run))}"


_IN_WORDS = {
    "n_pairs": "Pairs",
    "n_points": "Keypoints",
    "pairs_hash": "Hash of the list",
    "length": "Vectors a prompt",
    "rate": "Learning rate",
    "network_rate": "Learning rate of the linear maps",
    "accumulate": "Parts a batch is taken in",
    "kernel": "Loss kernel in cells",
    "draws": "Fixed noise draws",
    "image_size": "Image size in pixels",
    "upsample": "Upsampling of the finest map",
    "upsample_align": "Alignment of upsampling",
    "beta": "Softmax temperature beta",
    "sigma": "Kernel width sigma in cells",
    "window": "Window in cells",
    "window_beta": "Softmax temperature in the window",
    "dtype": "Precision of the networks",
    "root": "Dataset's folder",
    "command": "Command line",
    "created": "Made",
    "creator": "dualsd",
}
"""What a run's files call too shortly for a page."""


def facts_of(values: Mapping[str, Any], *names: str) -> dict[str, object]:
    """What a run's files say of some names, or of all: each in words, nested ones behind what they belong to."""
    found: dict[str, object] = {}
    for name, value in values.items():
        words = _IN_WORDS.get(name, name.replace("_", " ").capitalize())
        if names and name not in names:
            continue
        if isinstance(value, Mapping):
            found |= {f"{words}: {part.lower()}": own for part, own in facts_of(value).items()}
        else:
            found[words] = value
    return found


def demo_note(model: object) -> str | None:
    """What figures of the demo's model are worth."""
    note = (
        "The model is the demo's: drawn pictures are all it knows, and its figures say nothing of Stable Diffusion's."
    )
    return note if model == "demo" else None


def list_line(dataset: str, split: str, pairs: Pairs) -> str:
    """What was scored, in short."""
    return f"{dataset} {split}: {len(pairs)} pairs, {pairs.counts.sum()} keypoints"


def origin_facts(description: Mapping[str, Any]) -> dict[str, object]:
    """What was typed, when, where, and with which versions. description: of a run's folder."""
    dated = {**description, "created": when(description.get("created"))}
    return facts_of(dated, "command", "store", "root", "created", "creator") | (description.get("versions") or {})


def when(created: object) -> str | None:
    """`2026-11-24 19:10 UTC`, of a time as run folders have it."""
    return None if created is None else f"{str(created)[:16].replace('T', ' ')} UTC"


def unique(values: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(values))


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "value", value))
