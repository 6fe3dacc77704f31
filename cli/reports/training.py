"""`report.html` and tables of a training, from its run folder."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cli.reports import page
from cli.reports.charts import chart_sections, learning
from cli.reports.charts.learning import Course
from cli.reports.tables import in_words, write_tables
from featstore.errors import TuningError
from featstore.prompts.base import Mode
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.settings import TuningSettings
from featstore.tuning.step import ALPHA

CHARTS: Mapping[str, Callable[[Course], page.Chart | None]] = {"Learning curves": learning.draw}
"""By the titles of their sections."""
READING = (
    "The loss is how surprised correlation maps are by the true keypoints: lower is better, and each step sees other "
    "pairs, which is why it jitters. The strong line is a running mean; the table's mean loss is of steps since the "
    "row before."
)
VALIDATED = (
    "Validation is PCK on pairs that nothing is learned from. Where it falls while the loss goes on falling, the "
    "prompts are learning the training pairs by heart."
)


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
    run = RunFolder.open(path)
    settings, course, described = run.settings, _course(run), run.description
    model, name = described.get("model") or {}, shlex.quote(str(path))
    timesteps = zip(settings.layers, settings.timesteps, strict=True)
    highlights = {
        "Learned at": "; ".join(f"layer {layer}: t\u00a0=\u00a0{timestep}" for layer, timestep in timesteps),
        "Steps": f"{course.steps[-1]} of {settings.steps}",
        "Loss": f"{course.loss[0]:.3f} at first, {course.smooth[-1]:.3f} at last (running mean)",
        "Batch": f"{settings.batch} pairs",
        "Model": str(model.get("id", "unknown")),
    }
    notes = [f"{name}: {value}." for name, value in highlights.items()]
    write_tables(path, "table", f"Training of {path.name}", [course.block()], notes, page.make_again(path))
    left = course.steps[-1] < settings.steps
    go_on = page.Command("It was stopped before its last step. Go on with it:", f"dualsd train --resume {name}")
    evaluated = f"dualsd eval --store {shlex.quote(str(run.store))} --prompts {name}"
    report = page.Page(
        kind="Training",
        title=f"{settings.mode.value.capitalize()} prompts for "
        f"{in_words('layer', list(map(str, settings.layers)))}, learned on "
        f"{described.get('dataset', 'its dataset')}",
        created=page.when(described.get("created")),
        headline=_headline(course, settings),
        highlights={**highlights, "Time": _spelled(course.seconds)},
        settings=_settings(run, settings, model),
        sections={
            "How to read it": [
                READING,
                *([] if course.best is None else [VALIDATED]),
                *page.demo_note(model.get("id")),
            ],
            **chart_sections(CHARTS, course),
            "Go on from here": [
                *([go_on] if left else []),
                page.Command("Measure these prompts on test:", evaluated),
                page.Command("Make this page again:", page.report_command(path)),
            ],
        },
    )
    return page.write_report(report, path, page.make_again(path))


def _course(run: RunFolder) -> Course:
    rows = run.metrics_until(run.settings.steps)
    if not rows:
        raise TuningError(f"{run.path} has no metrics yet: there is nothing to report before its first checkpoint.")
    steps, losses, pcks, seconds = zip(*rows, strict=True)
    return Course(
        np.array(steps, dtype=np.int64),
        np.array(losses, dtype=np.float64),
        np.array([100 * float(pck) if pck else np.nan for pck in pcks]),
        float(seconds[-1]),
    )


def _headline(course: Course, settings: TuningSettings) -> page.Headline:
    done, best = f"{course.steps[-1]} of {settings.steps} steps", course.best
    if best is None:
        return page.Headline(
            "Loss, mean of the last steps",
            f"{course.smooth[-1]:.3f}",
            f"There was no validation. At the first step the loss was {course.loss[0]:.3f}; the last prompts are kept.",
            interval=f"after {done}",
        )
    return page.Headline(
        f"Best validation PCK@{ALPHA:g}, nn, image average",
        f"{course.percent[best]:.2f}",
        f"The prompts of that step are kept, the best of {len(course.validated)} validation(s). They were chosen on "
        "these pairs, so the figure is too high an estimate: report what `dualsd eval` measures on test.",
        "%",
        f"at step {course.steps[best]}, after {done}",
    )


def _settings(run: RunFolder, settings: TuningSettings, model: Mapping[str, Any]) -> dict[str, page.Facts]:
    rows = zip(settings.layers, settings.timesteps, settings.weights, settings.validation_timesteps, strict=True)
    described = run.description
    return {
        "What is learned": {
            "Mode": settings.mode.value,
            **{
                f"layer {layer}": f"t = {timestep}, weight {weight:g}; validated at t = {validated}"
                for layer, timestep, weight, validated in rows
            },
            "Vectors a prompt": settings.length,
            "Seed": settings.seed,
        },
        "Optimisation": {
            "Steps": settings.steps,
            "Batch": f"{settings.batch} pairs",
            "Parts a batch is taken in": settings.accumulate,
            "Learning rate": f"{settings.rate:g}",
            "Learning rate of the linear maps": f"{settings.network_rate:g}" if settings.mode is Mode.CPM else None,
            "Loss kernel": f"{settings.kernel} cells",
            "Noise": settings.noise.value,
            "Cached noise draws": settings.draws,
            "Precision": settings.dtype,
            "Processes": described.get("processes", 1),
            "Checkpoint every": f"{settings.checkpoint_every} steps",
        },
        "Validation": {
            "Every": f"{settings.validate_every} steps",
            "Pairs at most": settings.validation_pairs,
            "Measure": f"nn PCK@{ALPHA:g}, image average, one noise draw",
        },
        "Matching": page.matching_facts([settings.matching], ["nn"]),
        "Data and model": {
            "Dataset": described.get("dataset", "unknown"),
            "Pairs": described.get("n_pairs"),
            "Keypoints": described.get("n_points"),
            "Hash of the list": described.get("pairs_hash"),
            "Model": model.get("id", "unknown"),
            "Model fingerprint": model.get("fingerprint", "unknown"),
            "DINOv2": run.dino,
            "Trained on": run.identity,
            "Store": run.store,
        },
        "Origin and versions": page.origin_facts({**described, "store": None}),
    }


def _spelled(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
