"""matplotlib's figures as SVG within a page: its fonts, its colours in light and dark, no identifier twice."""

import io
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THEME = {"#000000": "currentColor", "#e6e6e6": "var(--line)", "#888888": "var(--soft)"}
"""Of figures without a background: black is the page's ink, greys are its own."""


def inline_svg(figure: "Figure", prefix: str) -> Markup:
    """A figure that is drawn on no background, in the page's ink. prefix: of identifiers, one a figure."""
    drawn = svg_text(figure, prefix)
    for colour, of_the_page in _THEME.items():
        drawn = drawn.replace(f": {colour}", f": {of_the_page}")
    return Markup(drawn)


def inline_svg_on_paper(figure: "Figure", prefix: str) -> Markup:
    """A figure that brings its own white background."""
    return Markup(svg_text(figure, prefix))


def svg_text(figure: "Figure", prefix: str) -> str:
    """The `<svg>` element alone. Texts stay text, which matplotlib escapes."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style\b.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    # the size is the page's matter; what is read out is the element around it
    text = re.sub(r'<svg\b[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))

    def renamed(found: re.Match[str]) -> str:
        return f' id="{prefix}-{found[1]}"' if found[1] in used else ""

    text = re.sub(r' id="([^"]*)"', renamed, text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = text.replace("xlink:href=", "href=")
    return re.sub(r"\n\s*", "\n", text)
