"""A training's course: the loss of every step with its running mean, and under it PCK on validation."""

from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cli.reports.charts import COLOURS, FONT, canvas
from cli.reports.page import Chart
from cli.reports.tables import Block
from featstore.tuning.step import ALPHA


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What a run's metrics say, a number a step, (S,), S >= 1. percent: PCK on validation, NaN where there was none."""

    steps: NDArray[np.int64]
    loss: NDArray[np.float64]
    percent: NDArray[np.float64]
    seconds: float

    @property
    def smooth(self) -> NDArray[np.float64]:
        """The mean of each loss and those before it, a twentieth of all and at least five, (S,)."""
        reach = max(len(self.loss) // 20, 5)
        ends = range(1, len(self.loss) + 1)
        return np.array([self.loss[max(end - reach, 0) : end].mean() for end in ends])

    @property
    def validated(self) -> NDArray[np.int64]:
        """The rows of steps that were validated, in order."""
        return np.flatnonzero(np.isfinite(self.percent))

    @property
    def best(self) -> int | None:
        """The row of the best validation, the first of equal ones; None where there was none."""
        rows = self.validated
        return int(rows[np.argmax(self.percent[rows])]) if len(rows) else None

    def block(self) -> Block:
        """A row a validation, or, where there was none, a row a tenth of the steps; the best marked."""
        last = len(self.steps) - 1
        rows = [int(row) for row in self.validated] or sorted({round(last * part / 10) for part in range(11)})
        starts = [0, *(row + 1 for row in rows[:-1])]
        found = []
        for start, row in zip(starts, rows, strict=True):
            percent = self.percent[row]
            shown = f"{percent:.2f}{' *' if row == self.best else ''}" if np.isfinite(percent) else "-"
            found.append((str(self.steps[row]), f"{self.loss[start : row + 1].mean():.4f}", shown))
        return Block(
            "Loss, a tenth at a time" if self.best is None else "Validations (* the best, whose prompts are kept)",
            ("step", "mean loss", f"validation PCK@{ALPHA:g}, percent"),
            tuple(found),
        )


def draw(course: Course) -> Chart:
    """The best validation is ringed."""
    steps, rows, best = course.steps, course.validated, course.best
    figure, panels = canvas(4.6, rows=1 if best is None else 2)
    panels[0].plot(steps, course.loss, color=COLOURS[0], lw=0.8, alpha=0.4)
    panels[0].plot(steps, course.smooth, color=COLOURS[0], lw=2)
    panels[0].set_ylabel("loss", fontsize=FONT)
    alt = f"Loss from {course.loss[0]:.3f} to {course.smooth[-1]:.3f} over {steps[-1]} steps."
    caption = "Loss by step; the strong line is a running mean."
    if best is not None:
        panels[1].plot(steps[rows], course.percent[rows], "o-", color=COLOURS[1], ms=4, lw=2)
        panels[1].plot(steps[best], course.percent[best], "o", ms=12, mfc="none", mec=COLOURS[1], mew=1.6)
        panels[1].margins(y=0.2)
        panels[1].set_ylabel("PCK@0.1 in percent", fontsize=FONT)
        panels[1].sharex(panels[0])
        panels[0].tick_params(labelbottom=False)
        alt += " Validation PCK in percent: " + ", ".join(
            f"{course.percent[row]:.1f} at step {steps[row]}" for row in rows
        )
        caption += f" Below: validation PCK@{ALPHA:g}, the best ringed."
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panels[-1].set_xlabel("step", fontsize=FONT)
    return Chart(figure, alt, caption, [course.block()])
