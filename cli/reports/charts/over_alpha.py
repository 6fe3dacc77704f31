"""PCK over alpha, a line a readout, over all pairs."""

import numpy as np

from cli.reports.charts import COLOURS, FONT, PERCENT, SMALL, as_typed, canvas
from cli.reports.page import Chart
from cli.reports.scores import Scored
from cli.reports.tables import Block

ALPHAS = tuple(number / 100 for number in range(1, 21))
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))


def draw(scored: Scored) -> Chart:
    """Lines told apart by colour and dashes; a dotted one stands at the alpha of the headline."""
    average = scored.average
    curves = {
        readout: np.array([100 * by_average[average][alpha].overall for alpha in ALPHAS])
        for readout, by_average in scored.run.scored(alphas=ALPHAS).pck.items()
    }
    figure, (axes,) = canvas(3.6)
    axes.axvline(scored.alpha, color="#888888", lw=1, ls=(0, (2, 3)))
    for index, (name, percent) in enumerate(curves.items()):
        colour, dashes = COLOURS[index % len(COLOURS)], _DASHES[index % len(_DASHES)]
        axes.plot(ALPHAS, percent, ls=dashes, color=colour, lw=2, label=name)
    last = ALPHAS[-1]
    ticks = np.linspace(0, last, 5)
    axes.set_xlim(0, last * 1.02)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    highest = max(percent.max() for percent in curves.values())
    axes.set_ylim(0, min(100.0, 10 * np.ceil((highest + 4) / 10)))
    axes.set_xlabel("alpha, as a fraction of theta", fontsize=FONT)
    axes.set_ylabel(PERCENT, fontsize=FONT)
    as_typed(axes.legend(loc="upper left", fontsize=SMALL, frameon=False, handlelength=2.6))
    rows = tuple(
        (f"{alpha:g}", *(f"{percent[row]:.2f}" for percent in curves.values())) for row, alpha in enumerate(ALPHAS)
    )
    title = f"The curve's points, PCK in percent, {average.value} average"
    ends = ", ".join(f"{name} from {percent[0]:.1f} to {percent[-1]:.1f}" for name, percent in curves.items())
    return Chart(
        figure,
        f"PCK in percent against alpha from 0.01 to 0.2: {ends}.",
        f"PCK against alpha from 0.01 to 0.2, {average.value} average, all pairs. The dotted line is at "
        f"{scored.alpha:g}. A curve that starts high is precise; one that only ends high finds the right part, but not "
        "the spot.",
        [Block(title, ("alpha", *curves), rows, folded=True)],
    )
