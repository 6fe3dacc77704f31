"""`report.html` and tables of a training, from its run folder."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cli.html_report.drawing import inline_svg
from cli.html_report.evaluation import DEMO_NOTE, title_of
from cli.html_report.page import Chart, Command, Fact, FactGroup, Headline, Page, Paragraph, Part, Section, Table
from cli.html_report.settings import matching_group, origin_group, when
from cli.html_report.write import make_again, report_command, write_report
from cli.table_text import Block, write_tables
from featstore.errors import TuningError
from featstore.prompts.base import Mode
from featstore.store.schema import creator_version
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.settings import TuningSettings
from featstore.tuning.step import ALPHA
from matcher.plot_scores import Learning, learning_figure, running_mean


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What a run's metrics say, a number a step, (S,), S >= 1. percent: PCK on validation, NaN where there was none."""

    steps: NDArray[np.int64]
    loss: NDArray[np.float64]
    percent: NDArray[np.float64]
    seconds: float

    @property
    def validated(self) -> NDArray[np.int64]:
        """The rows of steps that were validated, in order."""
        return np.flatnonzero(np.isfinite(self.percent))

    @property
    def best(self) -> int | None:
        """The row of the best validation, the first of equal ones; None where there was none."""
        rows = self.validated
        return int(rows[np.argmax(self.percent[rows])]) if len(rows) else None


def report_training(path: Path) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into a run's folder; returns where the report is.

    Raises `TuningError` where there is no run, or no step of it was done, `InputError` where nothing can be written.
    """
    run = RunFolder.open(path)
    settings, course = run.settings, _course(run)
    block = course_block(course)
    title = f"Training of {path.name}"
    highlights = _highlights(run, course)
    notes = [f"{fact.name}: {fact.value}." for fact in highlights]
    write_tables(path, "table", title, [block], notes, make_again(path))
    page = Page(
        kind="Training",
        title=f"{settings.mode.value.capitalize()} prompts for {title_of(list(map(str, settings.layers))).lower()}, "
        f"learned on {run.description.get('dataset', 'its dataset')}",
        created=when(run.description.get("created")),
        headline=_headline(course, settings),
        highlights=(*highlights, Fact("Time", _spelled(course.seconds))),
        settings=_settings(run, settings),
        sections=(
            Section("How to read it", _reading(run, course)),
            Section("Learning curves", [_chart(course), Table(block)]),
            Section("Go on from here", _commands(run, course, settings)),
        ),
        creator=creator_version(),
    )
    return write_report(page, path, make_again(path))


def _course(run: RunFolder) -> Course:
    rows = run.metrics_until(run.settings.steps)
    if not rows:
        raise TuningError(f"{run.path} has no metrics yet: there is nothing to report before its first checkpoint.")
    return Course(
        np.array([int(step) for step, *_ in rows]),
        np.array([float(loss) for _, loss, *_ in rows]),
        np.array([100 * float(pck) if pck else np.nan for _, _, pck, _ in rows]),
        float(rows[-1][3]),
    )


def course_block(course: Course) -> Block:
    """A row a validation, or, where there was none, a row a tenth of the steps; the best marked."""
    last = len(course.steps) - 1
    rows: Sequence[int] = list(map(int, course.validated)) or sorted({round(last * part / 10) for part in range(11)})
    starts = [0, *(row + 1 for row in rows[:-1])]
    found = []
    for start, row in zip(starts, rows, strict=True):
        percent = course.percent[row]
        shown = f"{percent:.2f}{' *' if row == course.best else ''}" if np.isfinite(percent) else "-"
        found.append((str(course.steps[row]), f"{course.loss[start : row + 1].mean():.4f}", shown))
    return Block(
        "Validations (* the best, whose prompts are kept)" if len(course.validated) else "Loss, a tenth at a time",
        ("step", "mean loss", f"validation PCK@{ALPHA:g}, percent"),
        tuple(found),
    )


def _headline(course: Course, settings: TuningSettings) -> Headline:
    done = f"{course.steps[-1]} of {settings.steps} steps"
    if course.best is None:
        smooth = running_mean(course.loss)
        return Headline(
            "Loss, mean of the last steps",
            f"{smooth[-1]:.3f}",
            "",
            f"after {done}",
            f"There was no validation. At the first step the loss was {course.loss[0]:.3f}; the last prompts are kept.",
        )
    best = course.best
    return Headline(
        f"Best validation PCK@{ALPHA:g}, {'nn'}, image average",
        f"{course.percent[best]:.2f}",
        "%",
        f"at step {course.steps[best]}, after {done}",
        f"The prompts of that step are kept, the best of {len(course.validated)} validation(s). They were chosen on "
        "these pairs, so the figure is too high an estimate: report what `dualsd eval` measures on test.",
    )


def _highlights(run: RunFolder, course: Course) -> tuple[Fact, ...]:
    settings, smooth = run.settings, running_mean(course.loss)
    layers = zip(settings.layers, settings.timesteps, strict=True)
    return (
        Fact("Learned at", "; ".join(f"layer {layer}: t\u00a0=\u00a0{timestep}" for layer, timestep in layers)),
        Fact("Steps", f"{course.steps[-1]} of {settings.steps}"),
        Fact("Loss", f"{course.loss[0]:.3f} at first, {smooth[-1]:.3f} at last (running mean)"),
        Fact("Batch", f"{settings.batch} pairs"),
        Fact("Model", str(_model(run, "id"))),
    )


def _settings(run: RunFolder, settings: TuningSettings) -> tuple[FactGroup, ...]:
    rows = zip(settings.layers, settings.timesteps, settings.weights, settings.validation_timesteps, strict=True)
    learned = [
        Fact("Mode", settings.mode.value),
        *(
            Fact(f"layer {layer}", f"t = {timestep}, weight {weight:g}; validated at t = {validated}")
            for layer, timestep, weight, validated in rows
        ),
        Fact("Vectors a prompt", str(settings.length)),
        Fact("Seed", str(settings.seed)),
    ]
    course = [
        Fact("Steps", str(settings.steps)),
        Fact("Batch", f"{settings.batch} pairs"),
        Fact("Parts a batch is taken in", str(settings.accumulate)),
        Fact("Learning rate", f"{settings.rate:g}"),
        *(
            [Fact("Learning rate of the linear maps", f"{settings.network_rate:g}")]
            if settings.mode is Mode.CPM
            else []
        ),
        Fact("Loss kernel", f"{settings.kernel} cells"),
        Fact("Noise", settings.noise.value),
        Fact("Cached noise draws", str(settings.draws)),
        Fact("Precision", settings.dtype),
        Fact("Processes", str(run.description.get("processes", 1))),
        Fact("Checkpoint every", f"{settings.checkpoint_every} steps"),
    ]
    validation = (
        Fact("Every", f"{settings.validate_every} steps"),
        Fact("Pairs at most", str(settings.validation_pairs)),
        Fact("Measure", f"{'nn'} PCK@{ALPHA:g}, image average, one noise draw"),
    )
    model = [
        Fact("Dataset", str(run.description.get("dataset", "unknown"))),
        *(
            Fact(name, str(run.description[key]))
            for name, key in (("Pairs", "n_pairs"), ("Keypoints", "n_points"), ("Hash of the list", "pairs_hash"))
            if key in run.description
        ),
        Fact("Model", str(_model(run, "id"))),
        Fact("Model fingerprint", str(_model(run, "fingerprint"))),
        *([] if run.dino is None else [Fact("DINOv2", run.dino)]),
        Fact("Trained on", run.identity),
        Fact("Store", str(run.store)),
    ]
    return (
        FactGroup("What is learned", tuple(learned)),
        FactGroup("Optimisation", tuple(course)),
        FactGroup("Validation", validation),
        matching_group([settings.matching], ["nn"]),
        FactGroup("Data and model", tuple(model)),
        origin_group({name: value for name, value in run.description.items() if name != "store"}),
    )


def _reading(run: RunFolder, course: Course) -> list[Part]:
    texts = [
        "The loss is how surprised correlation maps are by the true keypoints: lower is better, and each step sees "
        "other pairs, which is why it jitters. The strong line is a running mean; the table's mean loss is of steps "
        "since the row before.",
    ]
    if course.best is not None:
        texts.append(
            "Validation is PCK on pairs that nothing is learned from. Where it falls while the loss goes on falling, "
            "the prompts are learning the training pairs by heart."
        )
    if _model(run, "id") == "demo":
        texts.append(DEMO_NOTE)
    return [Paragraph(text) for text in texts]


def _chart(course: Course) -> Chart:
    rows = course.validated
    figure = learning_figure(Learning(course.steps, course.loss, course.steps[rows], course.percent[rows]))
    smooth = running_mean(course.loss)
    alt = f"Loss from {course.loss[0]:.3f} to {smooth[-1]:.3f} over {course.steps[-1]} steps."
    caption = "Loss by step; the strong line is a running mean."
    if course.best is not None:
        alt += " Validation PCK in percent: " + ", ".join(
            f"{course.percent[row]:.1f} at step {course.steps[row]}" for row in rows
        )
        caption += f" Below: validation PCK@{ALPHA:g}, the best ringed."
    return Chart(inline_svg(figure, "learning"), alt, caption)


def _commands(run: RunFolder, course: Course, settings: TuningSettings) -> list[Part]:
    path = shlex.quote(str(run.path))
    found = []
    if course.steps[-1] < settings.steps:
        found.append(Command("It was stopped before its last step. Go on with it:", f"dualsd train --resume {path}"))
    evaluated = f"dualsd eval --store {shlex.quote(str(run.store))} --prompts {path}"
    found.append(Command("Measure these prompts on test:", evaluated))
    found.append(Command("Make this page again:", report_command(run.path)))
    return list(found)


def _model(run: RunFolder, part: str) -> Any:
    model = run.description.get("model")
    return model.get(part, "unknown") if isinstance(model, dict) else "unknown"


def _spelled(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
