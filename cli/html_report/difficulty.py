"""PCK by how hard a dataset says its pairs are, as SPair-71k does: by viewpoint, scale, truncation and occlusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cli.html_report.drawing import inline_svg
from cli.html_report.page import Chart
from cli.html_report.scores import bar, spelled
from cli.table_text import Block
from matcher.pairs import PixelFrame
from matcher.pck import Average, Matches
from matcher.plot_scores import bar_figure
from matcher.statistics import Interval, pck_intervals

_VARIED, _HIDDEN = ("easy", "medium", "hard"), ("none", "source", "target", "both")
LEVELS = {"viewpoint": _VARIED, "scale": _VARIED, "truncation": _HIDDEN, "occlusion": _HIDDEN}
"""SPair-71k's words for 0, 1 and so on."""


@dataclass(frozen=True, slots=True)
class Level:
    """The pairs of one level of a flag. by_alpha: their PCK as fractions."""

    flag: str
    name: str
    pairs: int
    by_alpha: dict[float, Interval]


def levels(
    matched: Matches,
    readout: str,
    alphas: Sequence[float],
    average: Average,
    frame: PixelFrame | None,
) -> list[Level]:
    """Every level that occurs; none where a pair has no flags."""
    flags = matched.pairs.flags or {}
    found = []
    for flag in sorted(flags, key=lambda name: [*LEVELS, name].index(name)):
        for value in np.unique(flags[flag]).tolist():
            own = matched.take(flags[flag] == value)
            by_alpha = pck_intervals(own, [readout], alphas, average, frame)[readout]
            scored = {alpha: columns.overall for alpha, columns in by_alpha.items()}
            found.append(Level(flag, _name(flag, value), len(own), scored))
    return found


def difficulty_block(found: Sequence[Level], readout: str, average: Average) -> Block:
    """A row a level, a column an alpha."""
    rows = tuple((level.flag, level.name, str(level.pairs), *map(spelled, level.by_alpha.values())) for level in found)
    title = f"{readout}, {average.value} average, PCK in percent [95 % interval]"
    alphas = (f"@{alpha:g}" for alpha in found[0].by_alpha)
    return Block(title, ("variation", "level", "pairs", *alphas), rows, left_columns=2)


def difficulty_chart(found: Sequence[Level], readout: str, alpha: float, over_all: float) -> Chart:
    """Bars a level, under a heading a flag. over_all: PCK of all pairs, a fraction."""
    bars = [bar(level.name, level.by_alpha[alpha], level.flag) for level in found]
    values = ", ".join(f"{level.flag} {level.name} {100 * level.by_alpha[alpha].mean:.1f}" for level in found)
    return Chart(
        inline_svg(bar_figure(bars, 100 * over_all), "difficulty"),
        f"PCK@{alpha:g} in percent by difficulty: {values}.",
        f"PCK@{alpha:g} by the dataset's own marks of difficulty, {readout}; orange: 95 % intervals, dotted: "
        "all pairs. A pair has a level of each of them.",
    )


def _name(flag: str, value: int) -> str:
    known = LEVELS.get(flag, ())
    return known[value] if value < len(known) else f"level {value}"
