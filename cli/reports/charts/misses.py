"""The chart of why matches are wrong: a stacked bar per category."""

import numpy as np

from cli.reports.charts import COLOURS, FONT, SMALL, as_typed, canvas
from cli.reports.charts.evaluation import LONGEST_NAME
from cli.reports.misses import READING, aware_block, misses_block
from cli.reports.page import Chart
from cli.reports.scores import Scored
from featstore.pipeline.misses import misses_of
from matcher.misses import KINDS

_COLOURS = (COLOURS[2], COLOURS[5], COLOURS[1], COLOURS[4], "#bbbbbb")
"""By kind, right first."""


def by_kind(scored: Scored) -> Chart | None:
    """At the alpha and readout of the headline; None where not all keypoints of the targets were kept."""
    run, readout, alpha = scored.run, scored.readout, scored.alpha
    if run.matched.pairs.unmatched is None:
        return None
    misses = misses_of(run.scored(readouts=[readout]))
    found = misses.shares[readout][alpha].named()
    percent = 100 * np.array([[own[kind] for kind in KINDS] for own in found.values()])  # (categories and all, kinds)
    figure, (axes,) = canvas(1.0 + 0.27 * len(found))
    left = np.zeros(len(found))
    for kind, values, colour in zip(KINDS, percent.T, _COLOURS, strict=True):
        axes.barh(range(len(found)), values, 0.68, left=left, color=colour, label=kind.value)
        left += values
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in found]
    axes.set_yticks(range(len(found)), names, fontsize=FONT, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlim=(0, 100), ylim=(len(found) - 0.45, -0.55), xlabel="Points in percent")
    as_typed(figure.legend(loc="outside upper left", ncols=3, fontsize=SMALL, frameon=False))
    overall = zip(KINDS, percent[-1], strict=True)  # all are last
    said = ", ".join(f"{kind.value} {value:.1f}" for kind, value in overall)
    tables = [misses_block(misses, readout, alpha), aware_block(misses)]
    return Chart(
        figure,
        f"What became of all points at {alpha:g}, in percent: {said}.",
        f"What became of the points at alpha = {alpha:g}, {readout}. {READING}",
        [table for table in tables if table is not None],
    )
