"""`report.html` and tables of a training, from its run folder."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cli.reports import page
from cli.reports.charts import COLOURS, SMALL, canvas, chart_sections
from cli.reports.tables import Block, in_words, write_tables
from featstore.adapters.run import AdapterRun
from featstore.backbones.base import spell_timestep
from featstore.errors import TuningError
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.runs import ADAPTATION, Baselines, Run, Words, format_of, worth
from featstore.tuning.step import ALPHA


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What a run's metrics say, a number a step, (S,), S >= 1. percent: PCK on validation, NaN where there was none.
    before: what was validated before step 1; None where nothing was. words: what is compared."""

    steps: NDArray[np.int64]
    loss: NDArray[np.float64]
    percent: NDArray[np.float64]
    seconds: float
    before: Baselines | None
    words: Words

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

    @property
    def levels(self) -> dict[str, float]:
        """What was validated before step 1, in percent, by its name."""
        before, first = self.before, self.words.first.removeprefix("the ")
        return {} if before is None else {self.words.tag: 100 * before.of_text, first: 100 * before.initial}

    def block(self) -> Block:
        """A row a validation, or, where there was none, a row a tenth of the steps; the best marked."""
        last = len(self.steps) - 1
        rows = [int(row) for row in self.validated] or sorted({round(last * part / 10) for part in range(11)})
        starts = [0, *(row + 1 for row in rows[:-1])]
        found = [(name, "-", f"{percent:.2f}") for name, percent in self.levels.items()]
        for start, row in zip(starts, rows, strict=True):
            percent = self.percent[row]
            shown = f"{percent:.2f}{' *' if row == self.best else ''}" if np.isfinite(percent) else "-"
            found.append((str(self.steps[row]), f"{self.loss[start : row + 1].mean():.4f}", shown))
        return Block(
            "Loss, a tenth at a time"
            if self.best is None
            else f"Validations (* the best, whose {self.words.what} {self.words.are} kept)",
            ("step", "mean loss", f"validation PCK@{ALPHA:g}, percent"),
            tuple(found),
        )


def learning_curves(course: Course) -> page.Chart:
    """The loss of every step with its running mean, and under it PCK on validation, the best ringed."""
    steps, rows, best = course.steps, course.validated, course.best
    figure, panels = canvas(4.6, rows=1 if best is None else 2)
    panels[0].plot(steps, course.loss, color=COLOURS[0], lw=0.8, alpha=0.4)
    panels[0].plot(steps, course.smooth, color=COLOURS[0], lw=2)
    panels[0].set_ylabel("loss")
    alt = f"Loss from {course.loss[0]:.3f} to {course.smooth[-1]:.3f} over {steps[-1]} steps."
    caption = "Loss by step; the strong line is a running mean."
    if best is not None:
        panels[1].plot(steps[rows], course.percent[rows], "o-", color=COLOURS[1], ms=4, lw=2)
        panels[1].plot(steps[best], course.percent[best], "o", ms=12, mfc="none", mec=COLOURS[1], mew=1.6)
        for (name, percent), dash in zip(course.levels.items(), ("--", ":"), strict=False):
            panels[1].axhline(percent, color="#555555", lw=1.6, ls=dash, label=name)
            alt += f" Before step 1, {name}: {percent:.1f} percent."
        if course.levels:
            panels[1].legend(fontsize=SMALL, loc="best", frameon=False)
        panels[1].margins(y=0.2)
        panels[1].set_ylabel(f"PCK@{ALPHA:g} in percent")
        panels[1].sharex(panels[0])
        panels[0].tick_params(labelbottom=False)
        alt += " Validation PCK in percent: " + ", ".join(
            f"{course.percent[row]:.1f} at step {steps[row]}" for row in rows
        )
        caption += f" Below: validation PCK@{ALPHA:g}, the best ringed"
        caption += (
            f", over what {course.words.plain} and {course.words.first} have on the same pairs."
            if course.levels
            else "."
        )
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panels[-1].set_xlabel("step")
    return page.Chart(figure, alt, caption, [course.block()])


CHARTS: Mapping[str, Callable[[Course], page.Chart | None]] = {"Learning curves": learning_curves}
"""By the titles of their sections."""
READING = (
    "The loss is how surprised correlation maps are by the true keypoints: lower is better, and each step sees other "
    "pairs, which is why it jitters. The strong line is a running mean; the table's mean loss is of steps since the "
    "row before."
)
VALIDATED = (
    "Validation is PCK on pairs that nothing is learned from. Where it falls while the loss goes on falling, the "
    "{what} {are} learning the training pairs by heart."
)


@dataclass(frozen=True, slots=True)
class _About:
    """What a run learns, in the page's words. title: of the page. learned_at: the maps. use: the command that measures
    it. identity: what it was learned from."""

    title: str
    learned_at: str
    use: str
    identity: str


def _about(run: RunFolder | AdapterRun) -> _About:
    name, described = shlex.quote(str(run.path)), run.description
    where = described.get("dataset", "its dataset")
    if isinstance(run, AdapterRun):
        of_file = "features" in described
        place = (
            f"--features {shlex.quote(str(described['features']))}"
            if of_file
            else f"--store {shlex.quote(str(run.config.store))}"
        )
        inputs = run.settings.inputs
        at = "; ".join(_at(layer, timestep) for layer, timestep in inputs)
        title = f"{run.settings.mode.capitalize()} adapter on {in_words('layer', [layer for layer, _ in inputs])}"
        return _About(
            f"{title}, learned on {where}", at, f"dualsd eval {place} --adapter {name}", run.description["identity"]
        )
    settings = run.settings
    at = "; ".join(_at(str(own), step) for own, step in zip(settings.layers, settings.timesteps, strict=True))
    title = f"{settings.mode.value.capitalize()} prompts for {in_words('layer', list(map(str, settings.layers)))}"
    use = f"dualsd eval --store {shlex.quote(str(run.store))} --prompts {name}"
    return _About(f"{title}, learned on {where}", at, use, run.identity)


def _at(layer: str, timestep: int | None) -> str:
    return f"layer {layer}: t\u00a0=\u00a0{spell_timestep(timestep)}"


def report_training(path: Path) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into the folder of a training.

    Args:
        path: The folder.

    Returns:
        Where the report is.

    Raises:
        TuningError: There is no training, or no step of it was done.
        InputError: Nothing can be written.
    """
    run: RunFolder | AdapterRun = (AdapterRun if format_of(path) == ADAPTATION else RunFolder).open(path)
    about, settings, course, described = _about(run), run.settings, _course(run), run.description
    model, name = described.get("model") or {}, shlex.quote(str(path))
    highlights = {
        "Learned at": about.learned_at,
        "Steps": f"{course.steps[-1]} of {settings.steps}",
        "Loss": f"{course.loss[0]:.3f} at first, {course.smooth[-1]:.3f} at last (running mean)",
        "Batch": f"{settings.batch} pairs",
        "Model": str(model.get("id", "unknown")),
    }
    notes = [f"{name}: {value}." for name, value in highlights.items()]
    write_tables(path, "table", f"Training of {path.name}", [course.block()], notes, page.make_again(path))
    left = course.steps[-1] < settings.steps
    go_on = page.Command("It was stopped before its last step. Go on with it:", f"{run.COMMAND} --resume {name}")
    report = page.Page(
        kind="Training",
        title=about.title,
        origin={**described, "store": described["store"]["path"] if "store" in described else None},
        headline=_headline(course, settings.steps),
        highlights={**highlights, "Time": str(timedelta(seconds=round(course.seconds)))},
        settings={
            "Training": page.facts_of(settings.to_json()),
            "Data and model": {
                **page.facts_of(
                    described, "dataset", "n_pairs", "n_points", "pairs_hash", "model", "dino", "processes"
                ),
                "Trained on": about.identity,
            },
        },
        sections={
            "How to read it": [
                READING,
                None if course.best is None else VALIDATED.format(what=course.words.what, are=course.words.are),
                page.demo_note(model.get("id")),
                *described.get("notes", ()),
            ],
            **chart_sections(CHARTS, course),
            "Go on from here": [
                go_on if left else None,
                page.Command(
                    f"Measure {'this' if course.words.are == 'is' else 'these'} {course.words.what} on test:", about.use
                ),
                page.Command("Make this page again:", page.report_command(path)),
            ],
        },
    )
    return page.write_report(report, path, page.make_again(path))


def _course(run: Run) -> Course:
    rows = run.metrics_until(run.steps)
    if not rows:
        raise TuningError(f"{run.path} has no metrics yet: there is nothing to report before its first checkpoint.")
    steps, losses, pcks, seconds = zip(*rows, strict=True)
    return Course(
        np.array(steps, dtype=np.int64),
        np.array(losses, dtype=np.float64),
        np.array([100 * float(pck) if pck else np.nan for pck in pcks]),
        float(seconds[-1]),
        run.baselines,
        run.words,
    )


def _headline(course: Course, steps: int) -> page.Headline:
    done, best = f"{course.steps[-1]} of {steps} steps", course.best
    words = course.words
    kept = f"{words.what} {words.are} kept"
    if best is None:
        return page.Headline(
            "Loss, mean of the last steps",
            f"{course.smooth[-1]:.3f}",
            f"There was no validation. At the first step the loss was {course.loss[0]:.3f}; the last {kept}.",
            interval=f"after {done}",
        )
    before = course.before
    text = (
        "" if before is None or before.lead is None else f" PCK@{ALPHA:g}, paired: {worth(before, before.lead, words)}."
    )
    return page.Headline(
        f"Best validation PCK@{ALPHA:g}, nn, image average",
        f"{course.percent[best]:.2f}",
        f"The {words.what} of that step {words.are} kept, the best of {len(course.validated)} validation(s). "
        f"{words.they} chosen on these pairs, so the figure is too high an estimate: report what `dualsd eval` "
        f"measures on test.{text}",
        "%",
        f"at step {course.steps[best]}, after {done}",
    )
