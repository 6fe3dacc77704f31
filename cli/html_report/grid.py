"""`report.html` and tables of a grid."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.grid_output import (
    caution,
    eval_options,
    full_name,
    score_blocks,
    settings_of,
    shown_alpha,
    shown_winner,
    spell,
    winners_block,
)
from cli.grid_pictures import accuracy_panels, heat_panels
from cli.html_report.drawing import inline_svg_on_paper
from cli.html_report.evaluation import DEMO_NOTE, title_of
from cli.html_report.page import (
    Chart,
    Command,
    Fact,
    FactGroup,
    Gallery,
    Headline,
    Page,
    Paragraph,
    Part,
    Section,
    Table,
)
from cli.html_report.settings import feature_group, matching_group, origin_group, when
from cli.html_report.write import write_report
from cli.table_text import write_tables
from featstore.pair_list import list_hash
from featstore.store.schema import creator_version
from matcher.configuration import Configuration, MatchSettings
from matcher.grid import GridScores, Winner, weights_of, winners
from matcher.pck import Average
from matcher.plot_grid import AccuracyPanel, HeatPanel, accuracy_figure, heat_map_figure
from matcher.registry import frame_of


@dataclass(frozen=True, slots=True)
class GridRecord:
    """What a grid was measured on. features: where its maps came from. command: the `dualsd eval` to which the best
    configuration is added; chose_nothing: whether that is of other pairs. origin: what was typed, when, versions."""

    dataset: str
    split: str
    features: Mapping[str, Any]
    command: str
    chose_nothing: bool
    origin: Mapping[str, Any]


def report_grid(folder: Path, scores: GridScores, average: Average, record: GridRecord) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into the pictures' folder; returns where the report is. Raises
    `InputError` where they cannot be written."""
    found = winners(scores, average)
    best, tables = shown_winner(scores, found), list(score_blocks(scores, average))
    chosen, title = winners_block(scores, average, found), f"Grid on {record.dataset} {record.split}"
    notes = [caution(scores, chose_nothing=False)] if len(scores.configurations) > 1 else []
    write_tables(folder, "table", title, [chosen, *tables], notes)
    configuration = scores.configurations[best.best]
    layers = dict.fromkeys(layer.layer for entry in scores.configurations for layer in entry.layers)
    page = Page(
        kind="Grid",
        title=f"{title_of(list(layers))} on {record.dataset} {record.split}, "
        f"{len(scores.configurations)} configurations",
        created=when(record.origin.get("created")),
        headline=_headline(scores, best, average),
        highlights=_highlights(scores, record),
        settings=(
            _tried(scores, average, record),
            matching_group(settings_of(scores), scores.readouts),
            feature_group(record.features),
            origin_group(record.origin),
        ),
        sections=(
            Section("How to read it", _reading(scores, record, configuration)),
            Section("The best", [Table(chosen)]),
            Section("Pictures", list(_pictures(scores, average, configuration.settings))),
            Section("All scores", [Table(block, folded=index > 1) for index, block in enumerate(tables)]),
        ),
        creator=creator_version(),
    )
    return write_report(page, folder)


def _headline(scores: GridScores, best: Winner, average: Average) -> Headline:
    sentence = f"The best of {len(scores.configurations)} is {full_name(scores, best.best)}."
    if best.second is not None and best.lead is not None:
        tie = best.lead.low <= 0 <= best.lead.high
        worth = "an interval that holds 0: that is no lead" if tie else "an interval without 0"
        sentence += f" It leads {full_name(scores, best.second)} by {spell(best.lead)} points, {worth}."
    return Headline(
        f"Best PCK@{best.alpha:g}, {best.readout}, {average.value} average",
        f"{100 * best.pck.mean:.2f}",
        "%",
        f"95 % interval {100 * best.pck.low:.2f} to {100 * best.pck.high:.2f}",
        sentence,
    )


def _highlights(scores: GridScores, record: GridRecord) -> tuple[Fact, ...]:
    named = {"model": "Model", "prompt": "Prompt", "ensemble": "Ensemble"}
    return (
        Fact("Dataset", f"{record.dataset} {record.split}: {len(scores.pairs)} pairs, {scores.points.sum()} keypoints"),
        Fact("Timesteps", _timesteps(scores)),
        *(Fact(label, str(record.features[name])) for name, label in named.items() if name in record.features),
    )


def _tried(scores: GridScores, average: Average, record: GridRecord) -> FactGroup:
    fused = [entry for entry in scores.configurations if len(entry.layers) > 1]
    weightings = dict.fromkeys(" : ".join(f"{weight:.3g}" for weight in weights_of(entry)) for entry in fused)
    layers = dict.fromkeys(layer.layer for entry in scores.configurations for layer in entry.layers)
    return FactGroup(
        "What was tried",
        (
            Fact("Dataset", record.dataset),
            Fact("Split", record.split),
            Fact("Categories", ", ".join(scores.categories)),
            Fact("Pairs", str(len(scores.pairs))),
            Fact("Keypoints", str(scores.points.sum())),
            Fact("Hash of the list", list_hash(record.split, scores.pairs)),
            Fact("Layers", ", ".join(layers)),
            Fact("Timesteps", _timesteps(scores)),
            *([Fact("Weightings", "; ".join(weightings))] if weightings else []),
            Fact("Configurations", str(len(scores.configurations))),
            Fact("Alphas", ", ".join(f"{alpha:g}" for alpha in scores.alphas)),
            Fact("Average", average.value),
            *([Fact("Theta", record.origin["theta"])] if "theta" in record.origin else []),
            Fact("Frame of distances", ", ".join(f"{one}: {frame_of(one).value}" for one in scores.readouts)),
        ),
    )


def _timesteps(scores: GridScores) -> str:
    found = {layer.timestep for entry in scores.configurations for layer in entry.layers}
    return ", ".join(str(timestep) for timestep in sorted(step for step in found if step is not None))


def _reading(scores: GridScores, record: GridRecord, best: Configuration) -> list[Part]:
    found: list[Part] = [
        Paragraph(
            "PCK@alpha is the share of keypoints that were matched within alpha times theta of the truth. Every layer "
            "was tried alone at every timestep, and all of them together; intervals of 95 % resample images."
        )
    ]
    if len(scores.configurations) > 1:
        found.append(Command(caution(scores, record.chose_nothing), f"{record.command}{eval_options(best)}"))
    if record.features.get("model") == "demo":
        found.append(Paragraph(DEMO_NOTE))
    return found


def _pictures(scores: GridScores, average: Average, settings: MatchSettings) -> Iterator[Part]:
    """Of the settings of the best: of the first readout at the smallest, the shown and the largest alpha, of the others
    at the shown one."""
    shown = scores.alphas.index(shown_alpha(scores))
    several = sorted({0, shown, len(scores.alphas) - 1})
    fused = any(len(entry.layers) == 2 for entry in scores.configurations)
    if len(settings_of(scores)) > 1:
        yield Paragraph(
            f"Geometry {settings.geometry.value}, upsampled {settings.upsample}x, as the best has it; the pictures of "
            "the other settings lie beside this page."
        )
    for place, readout in enumerate(scores.readouts):
        rows = [shown] if place else several
        accuracy = accuracy_panels(scores, average, readout, settings, [scores.alphas[row] for row in rows])
        charts = [_accuracy_chart(panel, readout, f"t{place}-{number}") for number, panel in enumerate(accuracy)]
        yield Gallery(f"Accuracy against timestep, {readout}, with 95 % intervals", tuple(charts))
        if fused:
            weights, maps = heat_panels(scores, average, readout, settings)
            charts = [_heat_chart(maps[row], readout, f"m{place}-{row}") for row in rows]
            yield Gallery(f"Two layers together, {readout}: {weights}", tuple(charts))


def _accuracy_chart(panel: AccuracyPanel, readout: str, prefix: str) -> Chart:
    lines = "; ".join(
        f"{line.name}: "
        + ", ".join(f"{pck:.1f} at t={step}" for step, pck in zip(line.timesteps, line.percent, strict=True))
        for line in panel.lines
    )
    drawn = inline_svg_on_paper(accuracy_figure([panel], readout), prefix)
    return Chart(drawn, f"{panel.name} in percent by timestep. {lines}.", panel.name, on_paper=True)


def _heat_chart(panel: HeatPanel, readout: str, prefix: str) -> Chart:
    drawn = inline_svg_on_paper(heat_map_figure([panel], readout), prefix)
    alt = (
        f"Heat map of {panel.name} over the timesteps of two layers, from {np.nanmin(panel.percent):.1f} to "
        f"{np.nanmax(panel.percent):.1f} percent; the numbers are in the tables below."
    )
    return Chart(drawn, alt, f"{panel.name}; the best cell outlined.", on_paper=True)
