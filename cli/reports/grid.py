"""`report.html`, tables and pictures of a grid."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.output import say
from cli.reports import facts, page
from cli.reports.charts.over_timesteps import GridChart, accuracy, two_layers
from cli.reports.grid_tables import (
    GridView,
    caution,
    eval_options,
    full_name,
    score_blocks,
    settings_of,
    shown_winner,
    views,
    winners_block,
)
from cli.reports.scores import spelled
from cli.reports.tables import write_tables
from featstore.pipeline.grid import GridRun
from matcher.configuration import MatchSettings, frame_of
from matcher.errors import InputError
from matcher.grid import GridScores, Winner, winners
from matcher.pck import Average

CHARTS: Mapping[str, Callable[[GridView], GridChart | None]] = {"timesteps": accuracy, "two-layers": two_layers}
"""By the beginnings of their files' names."""


def check_folder(folder: Path) -> None:
    """Raise `InputError`, before any work is done, where the pictures' folder cannot be made."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"The folder {folder} for the pictures cannot be made in {there}: name another with --out.")


def draw(scores: GridScores, average: Average, folder: Path) -> None:
    """`timesteps-<readout>.png`, accuracy against timestep, and `two-layers-<readout>.png`, heat maps in the best
    weighting; a pair a settings where the grid has several. Raises `InputError` where they cannot be written."""
    several = len(settings_of(scores)) > 1
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for view in views(scores, average):
            own = f"{view.settings.geometry.value}-{view.settings.upsample}x" if several else ""
            for name, chart_of in CHARTS.items():
                chart = chart_of(view)
                if chart is not None:
                    title = f"{chart.title}, {view.readout}, {average.value} average {own}".rstrip()
                    files.append(folder / f"{'-'.join(filter(None, (name, view.readout, own)))}.png")
                    chart.draw(scores.alphas, title).figure.savefig(files[-1])
    except OSError as error:
        raise InputError(f"The pictures cannot be written to {folder}: {error.strerror}.") from error
    say(f"drawn: {', '.join(map(str, files))}")


def report_grid(folder: Path, run: GridRun, command: str, origin: Mapping[str, Any]) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into the pictures' folder.

    Args:
        folder: Where; it is made.
        run: What was measured.
        command: The `dualsd eval` to which the best configuration is added.
        origin: What was typed, when, and with which versions.

    Returns:
        Where the report is.

    Raises:
        InputError: They cannot be written.
    """
    scores, average = run.scores, Average(run.config.average)
    found = winners(scores, average)
    best, tables = shown_winner(scores, found), list(score_blocks(scores, average))
    chosen, title = winners_block(scores, average, found), f"{run.dataset} {run.split}"
    notes = [caution(scores, chose_nothing=False)] if len(scores.configurations) > 1 else []
    write_tables(folder, "table", f"Grid on {title}", [chosen, *tables], notes)
    configuration = scores.configurations[best.best]
    report = page.Page(
        kind="Grid",
        title=f"{facts.in_words('Layer', _layers(scores))} on {title}, {len(scores.configurations)} configurations",
        created=facts.when(origin.get("created")),
        headline=_headline(scores, best, average),
        highlights={
            "Dataset": facts.list_line(run.dataset, run.split, scores.pairs),
            "Timesteps": _timesteps(scores),
            **facts.named_features(run.features, {"model": "Model", "prompt": "Prompt", "ensemble": "Ensemble"}),
        },
        settings=[
            _tried(run),
            facts.matching_group(settings_of(scores), scores.readouts),
            facts.feature_group(run.features),
            facts.origin_group(origin),
        ],
        sections=[
            page.Section("How to read it", _reading(run, f"{command}{eval_options(configuration, run.features)}")),
            page.Section("The best", [page.Table(chosen)]),
            page.Section("Pictures", list(_pictures(scores, average, configuration.settings))),
            page.Section("All scores", [page.Table(block, folded=index > 1) for index, block in enumerate(tables)]),
        ],
    )
    return page.write_report(report, folder)


def _headline(scores: GridScores, best: Winner, average: Average) -> page.Headline:
    sentence = f"The best of {len(scores.configurations)} is {full_name(scores, best.best)}."
    if best.second is not None and best.lead is not None:
        tie = best.lead.low <= 0 <= best.lead.high
        worth = "an interval that holds 0: that is no lead" if tie else "an interval without 0"
        sentence += f" It leads {full_name(scores, best.second)} by {spelled(best.lead)} points, {worth}."
    return page.Headline(
        f"Best PCK@{best.alpha:g}, {best.readout}, {average.value} average",
        f"{100 * best.pck.mean:.2f}",
        "%",
        f"95 % interval {100 * best.pck.low:.2f} to {100 * best.pck.high:.2f}",
        sentence,
    )


def _tried(run: GridRun) -> page.FactGroup:
    scores = run.scores
    fused = [entry for entry in scores.configurations if len(entry.layers) > 1]
    weightings = facts.unique(" : ".join(f"{weight:.3g}" for weight in entry.weights) for entry in fused)
    tried = {
        "Layers": _layers(scores),
        "Timesteps": _timesteps(scores),
        "Weightings": "; ".join(weightings) if weightings else None,
        "Configurations": len(scores.configurations),
        "Alphas": [f"{alpha:g}" for alpha in scores.alphas],
        "Average": run.config.average,
        "Theta": run.theta,
        "Frame of distances": [f"{one}: {frame_of(one).value}" for one in scores.readouts],
    }
    return page.FactGroup(
        "What was tried", {**facts.list_facts(run.dataset, run.split, scores.pairs), **facts.as_text(tried)}
    )


def _layers(scores: GridScores) -> list[str]:
    return facts.unique(layer.layer for entry in scores.configurations for layer in entry.layers)


def _timesteps(scores: GridScores) -> str:
    found = {layer.timestep for entry in scores.configurations for layer in entry.layers}
    return ", ".join(str(timestep) for timestep in sorted(step for step in found if step is not None))


def _reading(run: GridRun, command: str) -> list[page.Part]:
    found: list[page.Part] = [
        page.Paragraph(
            "PCK@alpha is the share of keypoints that were matched within alpha times theta of the truth. Every layer "
            "was tried alone at every timestep, and all of them together; intervals of 95 % resample images."
        )
    ]
    if len(run.scores.configurations) > 1:
        found.append(page.Command(caution(run.scores, run.chose_nothing), command))
    if run.features.get("model") == "demo":
        found.append(page.Paragraph(facts.DEMO_NOTE))
    return found


def _pictures(scores: GridScores, average: Average, settings: MatchSettings) -> Iterator[page.Part]:
    """Of the settings of the best: of the first readout at the smallest, the shown and the largest alpha, of the others
    at the shown one."""
    if len(settings_of(scores)) > 1:
        yield page.Paragraph(
            f"Geometry {settings.geometry.value}, upsampled {settings.upsample}x, as the best has it; the pictures of "
            "the other settings lie beside this page."
        )
    for view in views(scores, average):
        if view.settings != settings:
            continue
        several = sorted({scores.alphas[0], view.alpha, scores.alphas[-1]}, key=scores.alphas.index)
        alphas = several if view.readout is scores.readouts[0] else [view.alpha]
        for chart_of in CHARTS.values():
            chart = chart_of(view)
            if chart is not None:
                yield page.Gallery(chart.heading, tuple(_picture(chart, view, alpha) for alpha in alphas))


def _picture(chart: GridChart, view: GridView, alpha: float) -> page.Picture:
    one = chart.draw([alpha], view.readout)
    return page.drawn(one.figure, one.alt, one.caption)
