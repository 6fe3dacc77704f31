"""`report.html`, tables and pictures of a grid."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cli.output import say
from cli.reports import page, tables
from cli.reports.charts.grid import accuracy, two_layers
from cli.reports.grid_tables import (
    GridView,
    RankedGrid,
    answer_block,
    caution,
    confirming,
    in_words,
    score_blocks,
    winners_block,
)
from cli.reports.scores import pck_headline, spelled
from cli.reports.tables import write_tables
from featstore.pipeline.pairs import describe_list
from matcher.configuration import frame_of
from matcher.errors import InputError

CHARTS: Mapping[str, tuple[str, Callable[[GridView, Sequence[float], str], page.Chart | None]]] = {
    "timesteps": ("Accuracy against timestep with 95 % intervals", accuracy),
    "two-layers": ("Two layers together", two_layers),
}
"""By the beginnings of their files' names: a title, and what draws a view at some alphas under a title."""


def draw(grid: RankedGrid, folder: Path) -> None:
    """`timesteps-<readout>.png`, accuracy against timestep, and `two-layers-<readout>.png`, heat maps in the best
    weighting; one of each per settings where the grid has several. Raises `InputError` where they cannot be written."""
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for view in grid.views:
            own = f"{view.settings.geometry.value}-{view.settings.upsample}x" if len(grid.settings) > 1 else ""
            for name, (title, draw_chart) in CHARTS.items():
                over = f"{title}, {view.readout}, {grid.average.value} average {own}".rstrip()
                chart = draw_chart(view, grid.scores.alphas, over)
                if chart is not None:
                    files.append(folder / f"{'-'.join(filter(None, (name, view.readout, own)))}.png")
                    chart.figure.savefig(files[-1])
    except OSError as error:
        raise InputError(f"The pictures cannot be written to {folder}: {error.strerror}.") from error
    say(f"drawn: {', '.join(map(str, files))}")


def report_grid(grid: RankedGrid, folder: Path, origin: Mapping[str, Any]) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into the pictures' folder.

    Args:
        grid: What was measured.
        folder: Where; it is made.
        origin: What was typed, when, and with which versions.

    Returns:
        Where the report is.

    Raises:
        InputError: They cannot be written.
    """
    run, scores = grid.run, grid.scores
    several = len(scores.configurations) > 1
    answer = [] if grid.answer is None else [answer_block(grid, grid.answer)]
    blocks, chosen, title = list(score_blocks(grid)), winners_block(grid), f"{run.dataset} {run.split}"
    commands = confirming(grid) if several else []
    notes = [caution(grid), *(f"`{command}`" for command in commands)] if several else []
    write_tables(folder, "table", f"Grid on {title}", [*answer, chosen, *blocks], notes)
    layers = page.unique(layer.layer for entry in scores.configurations for layer in entry.layers)
    found = {layer.timestep for entry in scores.configurations for layer in entry.layers}
    fused = (entry.weights for entry in scores.configurations if len(entry.layers) > 1)
    weightings = page.unique(" : ".join(f"{weight:.3g}" for weight in weights) for weights in fused)
    report = page.Page(
        kind="Grid",
        title=f"{tables.in_words('Layer', layers)} on {title}, {len(scores.configurations)} configurations",
        origin=origin,
        headline=_headline(grid),
        highlights={
            "Dataset": page.list_line(run.dataset, run.split, scores.pairs),
            "Timesteps": sorted(timestep for timestep in found if timestep is not None),
            **page.facts_of(run.features, "model", "prompt", "ensemble", "adapter"),
        },
        settings={
            "What was tried": {
                "Dataset": run.dataset,
                **page.facts_of(describe_list(run.split, scores.pairs)),
                **page.facts_of(origin["config"], "split", "max_pairs", "layers", "timesteps", "readouts", "alphas"),
                **page.facts_of(origin["config"], "average", "geometries", "upsamples", "upsample_align"),
                "Weightings": weightings or None,
                "Configurations": len(scores.configurations),
                "Theta": run.theta,
                "Frame of distances": [f"{one}: {frame_of(one).value}" for one in scores.readouts],
            },
            "Matching": page.facts_of(asdict(grid.settings[0]), "image_size", "beta", "sigma", "window", "window_beta"),
            "Features": page.facts_of(run.features),
        },
        sections={
            "Together or alone": [
                *answer,
                *(page.Command(text, line) for text, line in zip([caution(grid), *_OTHERS], commands, strict=False)),
            ],
            "How to read it": [
                "PCK@alpha is the share of keypoints that were matched within alpha times theta of the truth. Every "
                "layer was tried alone at every timestep, and layers together; intervals of 95 % resample images.",
                page.demo_note(run.features.get("model")),
            ],
            "The best of all": [chosen],
            "Pictures": list(_pictures(grid)),
            "All scores": [replace(block, folded=index > 1) for index, block in enumerate(blocks)],
        },
    )
    return page.write_report(report, folder)


_OTHERS = ("The best together:", "The two compared, pair by pair:")
"""What the commands behind the first are for."""


def _headline(grid: RankedGrid) -> page.Headline:
    """The answer; of a grid of single layers the best of them."""
    best, answer = grid.winner, grid.answer
    if answer is not None:
        low, high = 100 * answer.lead.low, 100 * answer.lead.high
        return page.Headline(
            f"Layers together against the best single one, PCK@{answer.alpha:g}",
            f"{100 * answer.lead.mean:+.2f}",
            f"{in_words(grid, answer)}. Together: {grid.full_name(answer.together)}. Alone: "
            f"{grid.full_name(answer.alone)}.",
            " points",
            f"95 % interval {low:.2f} to {high:.2f}",
        )
    sentence = f"The best of {len(grid.scores.configurations)} is {grid.full_name(best.best)}."
    if best.second is not None and best.lead is not None:
        tie = best.lead.low <= 0 <= best.lead.high
        worth = "an interval that holds 0: that is no lead" if tie else "an interval without 0"
        sentence += f" It leads {grid.full_name(best.second)} by {spelled(best.lead)} points, {worth}."
    label = f"Best PCK@{best.alpha:g}, {best.readout}, {grid.average.value} average"
    return pck_headline(label, best.pck, sentence, grid.scores.pairs)


def _pictures(grid: RankedGrid) -> Iterator[page.Part]:
    """Of the settings of the best: of the first readout at the smallest, the shown and the largest alpha, of the others
    at the shown one."""
    settings, alphas = grid.scores.configurations[grid.winner.best].settings, grid.scores.alphas
    if len(grid.settings) > 1:
        yield (
            f"Geometry {settings.geometry.value}, upsampled {settings.upsample}x, as the best has it; the pictures of "
            "the other settings lie beside this page."
        )
    for view in grid.views:
        if view.settings != settings:
            continue
        every = [alpha for alpha in alphas if alpha in (alphas[0], grid.alpha, alphas[-1])]
        shown = every if view.readout == grid.scores.readouts[0] else [grid.alpha]
        for title, draw_chart in CHARTS.values():
            drawn = [chart for alpha in shown if (chart := draw_chart(view, [alpha], view.readout)) is not None]
            if drawn:
                yield page.Gallery(f"{title}, {view.readout}", drawn)
