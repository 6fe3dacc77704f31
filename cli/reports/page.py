"""A report as data, what its template shows in order; and from there to `report.html`: one file, all text escaped,
every picture within it. Settings stand there as a reader finds them: a name in words, a value as text, in groups."""

import base64
import io
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from cli.reports.tables import Block
from featstore.files import AGAIN, write_whole
from featstore.pipeline.pairs import list_hash
from featstore.store.schema import creator_version
from matcher.configuration import MatchSettings
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
    """

    template: ClassVar[str] = "picture.html.jinja"
    figure: Figure
    alt: str
    caption: str
    tables: Sequence[Block] = ()

    @property
    def on_paper(self) -> bool:
        """Whether it brings a background of its own."""
        return self.figure.patch.get_visible()

    @property
    def address(self) -> str:
        """All of it, as a data URI."""
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dualsd"}):
            return _address(self.figure, "svg", "image/svg+xml", metadata={"Date": None})


class Photographs(Chart):
    """Photographs with marks on them, as pixels."""

    on_paper = True

    @property
    def address(self) -> str:
        """All of it, as a data URI."""
        return _address(self.figure, "webp", "image/webp", pil_kwargs={"quality": 70})


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


Part = str | Block | Chart | Gallery | Command
"""Of a section; a text is a paragraph."""


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Args:
        kind: As `Evaluation`.
        title: What was measured, on what.
        created: When, see `when`.
        headline: Its main figure.
        highlights: The few facts that matter most.
        settings: All that the numbers depend on, by the titles of groups.
        sections: By their titles.
    """

    kind: str
    title: str
    created: str
    headline: Headline
    highlights: Facts
    settings: Mapping[str, Facts]
    sections: Mapping[str, Sequence[Part]]


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


_FEATURES = {
    "prompt": "Prompt",
    "ensemble": "Ensemble (noise draws averaged)",
    "model": "Model",
    "model_revision": "Model revision",
    "model_fingerprint": "Model fingerprint",
    "dtype": "Precision of the networks",
    "latents": "Latents of the posterior",
    "seed": "Seed of latents and noise",
    "extractor": "Maps in the store",
    "dino": "DINOv2",
    "dino_fingerprint": "DINOv2 fingerprint",
    "dino_size": "DINOv2 image size",
    "dino_extractor": "DINOv2 maps in the store",
    "features": "File of features",
}
_EMPTY = {"model_revision": "none named", "extractor": "not kept, they belong to pairs"}


def named_features(features: Mapping[str, Any], *names: str) -> dict[str, object]:
    """What is recorded of where maps came from, of that what is named."""
    return {_FEATURES[name].split(" (")[0]: features.get(name) for name in names}


def demo_note(model: object) -> list[str]:
    """What figures of the demo's model are worth."""
    note = (
        "The model is the demo's: drawn pictures are all it knows, and its figures say nothing of Stable Diffusion's."
    )
    return [note] if model == "demo" else []


def list_facts(dataset: str, split: str, pairs: Pairs) -> dict[str, object]:
    """What was scored."""
    return {
        "Dataset": dataset,
        "Split": split,
        "Categories": list(pairs.occurring),
        "Pairs": len(pairs),
        "Keypoints": pairs.counts.sum(),
        "Hash of the list": list_hash(split, pairs),
    }


def list_line(dataset: str, split: str, pairs: Pairs) -> str:
    """The same in short."""
    return f"{dataset} {split}: {len(pairs)} pairs, {pairs.counts.sum()} keypoints"


def feature_facts(features: Mapping[str, Any]) -> dict[str, object]:
    """Where maps came from, all that is recorded of it."""
    found: dict[str, object] = {}
    for name, value in features.items():
        if isinstance(value, Mapping):
            found |= {part: _shown(own) for part, own in _flat(value, "Prompts: ")}
        else:
            found[_FEATURES.get(name, name)] = _EMPTY.get(name, "none") if value is None else str(value)
    return found


def matching_facts(tried: Sequence[MatchSettings], readouts: Sequence[str]) -> dict[str, object]:
    """How maps become matches, in all the ways that were tried; what belongs to a readout only where it was used."""
    first, used = tried[0], set(readouts)
    softmax = used & {"softmax", "kernelsoftmax"}
    return {
        "Image size": f"{first.image_size} x {first.image_size} pixels, aspect ratio not kept",
        "Geometry": unique(one.geometry.value for one in tried),
        "Upsampling of the finest map": unique(f"{one.upsample}x" for one in tried),
        "Alignment of upsampling": unique(one.upsample_align.value for one in tried),
        "Readouts": list(readouts),
        "Softmax temperature beta": f"{first.beta:g}" if softmax else None,
        "Kernel width sigma": f"{first.sigma:g} cells" if "kernelsoftmax" in used else None,
        "Window": f"{first.window} cells, temperature {first.window_beta:g}" if "window" in used else None,
    }


def origin_facts(description: Mapping[str, Any]) -> dict[str, object]:
    """What was typed, when, where, and with which versions. description: of a run's folder."""
    versions = description.get("versions")
    return {
        "Command line": description.get("command"),
        "Store": description.get("store"),
        "Dataset's folder": description.get("root"),
        "Made": when(description["created"]) if "created" in description else None,
        "dualsd": description.get("creator", "unknown"),
        **(versions if isinstance(versions, Mapping) else {}),
    }


def when(created: object) -> str:
    """`2026-11-24 19:10 UTC`, of a time as run folders have it."""
    text = str(created or "")
    return f"{text[:16].replace('T', ' ')} UTC" if len(text) >= 16 else text


def unique(values: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(values))


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", value


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "none" if value is None else str(value)
