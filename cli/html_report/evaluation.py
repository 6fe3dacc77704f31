"""`report.html` and tables of an evaluation, from its run folder."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.html_report.difficulty import difficulty_block, difficulty_chart, levels
from cli.html_report.page import Command, Fact, FactGroup, Gallery, Headline, Page, Paragraph, Part, Section, Table
from cli.html_report.pair_pictures import LEGEND, pair_chart, read_pictures
from cli.html_report.scores import (
    CURVE_ALPHAS,
    category_block,
    category_chart,
    curve_block,
    curve_chart,
    overall_block,
    shown_alpha,
)
from cli.html_report.settings import feature_group, matching_group, origin_group, when
from cli.html_report.write import make_again, report_command, write_report
from cli.output import describe
from cli.table_text import Block, write_tables
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.pair_list import list_hash
from featstore.pipeline.evaluation_run import EvaluationRun
from featstore.store.schema import creator_version
from matcher.errors import InputError
from matcher.pairs import ALL
from matcher.pck import RULE, Average, RankedPair, best_and_worst, paper_rows
from matcher.readout import Readout
from matcher.statistics import PckIntervals, pck_intervals

PAIRS_SHOWN = 4
"""Of the best, and of the worst."""

DEMO_NOTE = (
    "The model is the demo's: drawn pictures are all it knows, and its figures say nothing of Stable Diffusion's."
)


def report_evaluation(path: Path, root: Path | None = None) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into the folder of an evaluation; returns where the report is.

    root: the dataset's folder, where it was moved. Pairs are drawn only where their images are found; else the page
    says why not. Raises `EvaluationError` where there is no evaluation, `InputError` where nothing can be written.
    """
    run = EvaluationRun.open(path)
    average = run.average
    scoring = run.scoring
    by_average = {
        kind: pck_intervals(run.matched, scoring.readouts, scoring.alphas, kind, scoring.pixels)
        for kind in sorted(Average, key=lambda kind: kind is not average)
    }
    page = _page(run, average, by_average, root)
    readout = scoring.readouts[0]
    header, rows = paper_rows(run.scored().table, average)
    title = f"PCK in percent, {run.dataset} {run.split}, {average.value} average"
    blocks = [
        *_overall(run, by_average),
        category_block(readout, by_average[average][readout], _pair_counts(run), average),
        Block(f"Every readout: {title}", tuple(header), tuple(map(tuple, rows)), left_columns=2),
    ]
    notes = [f"{describe(scoring, run.features)}.", "Intervals of 95 %, images resampled."]
    write_tables(path, "table", title, blocks, notes, make_again(path))
    return write_report(page, path, make_again(path))


def _page(
    run: EvaluationRun,
    average: Average,
    by_average: Mapping[Average, Mapping[Readout, PckIntervals]],
    root: Path | None,
) -> Page:
    scoring, readout, alpha = run.scoring, run.scoring.readouts[0], shown_alpha(run.scoring.alphas)
    found = by_average[average]
    curves = run.scored(alphas=CURVE_ALPHAS).table
    counts = _pair_counts(run)
    sections = [
        Section("How to read it", _reading(run)),
        Section("Over all pairs", [Table(block) for block in _overall(run, by_average)]),
        Section(
            "PCK over alpha", [curve_chart(curves, average, alpha), Table(curve_block(curves, average), folded=True)]
        ),
        Section(
            "By category",
            [
                category_chart(readout, found[readout][alpha], alpha),
                *(
                    Table(category_block(one, found[one], counts, average), folded=one is not readout)
                    for one in scoring.readouts
                ),
            ],
        ),
    ]
    graded = levels(run.matched, readout, scoring.alphas, average, scoring.pixels)
    if graded:
        over_all = found[readout][alpha].overall.mean
        chart = difficulty_chart(graded, readout, alpha, over_all)
        sections.append(Section("By difficulty", [chart, Table(difficulty_block(graded, readout, average))]))
    sections.append(Section("Best and worst pairs", _pairs(run, readout, alpha, root)))
    sections.append(Section("Go on from here", _commands(run)))
    return Page(
        kind="Evaluation",
        title=f"{title_of([layer.layer for layer in scoring.layers])} on {run.dataset} {run.split}",
        created=when(run.description.get("created")),
        headline=_headline(run, average, readout, alpha, found[readout]),
        highlights=_highlights(run),
        settings=(
            _measured(run, average),
            FactGroup("Layers", tuple(Fact(*fact) for fact in _layers(run))),
            matching_group([scoring.settings], scoring.readouts),
            feature_group(run.features),
            origin_group(run.description),
        ),
        sections=tuple(sections),
        creator=creator_version(),
    )


def _headline(run: EvaluationRun, average: Average, readout: Readout, alpha: float, found: PckIntervals) -> Headline:
    pck = found[alpha].overall
    mean = "averaged over pairs" if average is Average.IMAGE else "all in one heap"
    return Headline(
        f"PCK@{alpha:g}, {readout.value}, {average.value} average",
        f"{100 * pck.mean:.2f}",
        "%",
        f"95 % interval {100 * pck.low:.2f} to {100 * pck.high:.2f}",
        f"{100 * pck.mean:.1f} % of the keypoints, {mean}, were found within {alpha:g} theta of where they lie"
        f"{_theta(run)}. The interval says how far the figure might move with other images of the same kind.",
    )


def _theta(run: EvaluationRun) -> str:
    rule = run.description.get("theta")
    return f"; theta is the {rule}" if isinstance(rule, str) else ""


def _highlights(run: EvaluationRun) -> tuple[Fact, ...]:
    points = sum(len(match.pair.target_points) for match in run.matched)
    features = run.features
    named = {"model": "Model", "prompt": "Prompt", "ensemble": "Ensemble", "dino": "DINOv2", "features": "Features"}
    return (
        Fact("Dataset", f"{run.dataset} {run.split}: {len(run.matched)} pairs, {points} keypoints"),
        Fact("Layers", "; ".join(": ".join(fact) for fact in _layers(run))),
        *(Fact(label, str(features[name])) for name, label in named.items() if features.get(name) is not None),
        Fact("Geometry", run.scoring.settings.geometry.value),
    )


def title_of(layers: Sequence[str]) -> str:
    """`Layers 2 and 3`."""
    *before, last = layers
    return f"Layers {', '.join(before)} and {last}" if before else f"Layer {last}"


def _layers(run: EvaluationRun) -> list[tuple[str, str]]:
    several = len(run.scoring.layers) > 1
    return [
        (
            f"layer {layer.layer}",
            ", ".join(
                [
                    *([] if layer.timestep is None else [f"t\u00a0=\u00a0{layer.timestep}"]),
                    *([f"weight\u00a0{layer.weight:g}"] if several else []),
                ]
            )
            or "alone",
        )
        for layer in run.scoring.layers
    ]


def _measured(run: EvaluationRun, average: Average) -> FactGroup:
    points = sum(len(match.pair.target_points) for match in run.matched)
    scoring, theta = run.scoring, run.description.get("theta")
    frames = ", ".join(f"{readout.value}: {scoring.frame_of(readout).value}" for readout in scoring.readouts)
    return FactGroup(
        "What was measured",
        (
            Fact("Dataset", run.dataset),
            Fact("Split", run.split),
            Fact("Categories", ", ".join(name for name in _pair_counts(run) if name != ALL)),
            Fact("Pairs", str(len(run.matched))),
            Fact("Keypoints", str(points)),
            Fact("Hash of the list", list_hash(run.split, [match.pair for match in run.matched])),
            Fact("Average of the headline", average.value),
            Fact("Alphas", ", ".join(f"{alpha:g}" for alpha in scoring.alphas)),
            *([Fact("Theta", theta)] if isinstance(theta, str) else []),
            Fact("Frame of distances", frames),
        ),
    )


def _reading(run: EvaluationRun) -> list[Part]:
    texts = [
        "PCK@alpha is the share of keypoints that were matched within alpha times theta of the truth: higher is "
        "better, and a small alpha asks for more precision. A difference between two methods counts only where "
        "everything below but the method is the same.",
        "The image average takes each pair's PCK, then the mean over pairs; the point average takes all keypoints in "
        "one heap, so that pairs with many count more. Papers mix them.",
        "Pairs share images, so they are no independent trials: the 95 % intervals resample images. Where two "
        "intervals overlap, the methods may still differ: `dualsd compare` tests that pair by pair.",
    ]
    frames = {run.scoring.frame_of(readout) for readout in run.scoring.readouts}
    if len(frames) > 1:
        texts.append("Readouts here are measured in different frames; their figures are not comparable across frames.")
    if run.features.get("model") == "demo":
        texts.append(DEMO_NOTE)
    return [Paragraph(text) for text in texts]


def _overall(run: EvaluationRun, by_average: Mapping[Average, Mapping[Readout, PckIntervals]]) -> list[Block]:
    frames = {readout: run.scoring.frame_of(readout) for readout in run.scoring.readouts}
    return [overall_block(found, average, frames) for average, found in by_average.items()]


def _pair_counts(run: EvaluationRun) -> dict[str, int]:
    counted = Counter(match.pair.category for match in run.matched)
    return {**dict(sorted(counted.items())), ALL: len(run.matched)}


def _pairs(run: EvaluationRun, readout: Readout, alpha: float, root: Path | None) -> list[Part]:
    scoring = run.scoring
    best, worst = best_and_worst(run.matched, readout, alpha, scoring.pixels, PAIRS_SHOWN)
    rule = Paragraph(f"At alpha = {alpha:g}, {readout.value}. {RULE}")
    try:
        pictures = read_pictures(_dataset(run, root), [run.matched[one.index] for one in (*best, *worst)])
    except InputError as error:
        rows = tuple(
            (kind, match.pair.category, match.pair.source, match.pair.target, f"{100 * one.pck:.1f}")
            for kind, chosen in (("best", best), ("worst", worst))
            for one in chosen
            for match in [run.matched[one.index]]
        )
        header = ("", "category", "source", "target", f"PCK@{alpha:g}")
        table = Table(Block("Best and worst pairs", header, rows, left_columns=4))
        return [rule, Paragraph(f"Their pictures cannot be shown: {error}"), table]

    def drawn(title: str, chosen: Sequence[RankedPair]) -> Gallery:
        charts = (
            pair_chart(run.matched[one.index], one, readout, scoring.settings.image_size, pictures) for one in chosen
        )
        return Gallery(title, tuple(charts))

    galleries = [drawn(title, chosen) for title, chosen in (("Best", best), ("Worst", worst)) if chosen]
    return [rule, Paragraph(LEGEND), *galleries]


def _dataset(run: EvaluationRun, root: Path | None) -> Dataset:
    kept = run.description.get("root")
    return open_dataset(run.dataset, root or (Path(kept) if isinstance(kept, str) else None))


def _commands(run: EvaluationRun) -> list[Part]:
    path = shlex.quote(str(run.path))
    return [
        Command(
            "Score the same matches at other thresholds, or in the original frame, without matching again:",
            f"dualsd score {path} --alphas 0.01..0.2:0.01 --frame original",
        ),
        Command("Ask whether another evaluation of the same pairs is better:", f"dualsd compare {path} OTHER_RUN"),
        Command("Make this page again:", report_command(run.path)),
    ]
