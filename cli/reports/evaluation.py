"""`report.html` and tables of an evaluation, from its run folder; the best and worst pairs are drawn with their
correspondences: two pictures side by side, lines between them."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image

from cli.output import describe
from cli.reports import page
from cli.reports.charts import chart_sections
from cli.reports.charts.evaluation import by_category, by_difficulty, over_alpha
from cli.reports.charts.misses import by_kind
from cli.reports.scores import Scored, category_block, overall_block, pck_headline
from cli.reports.tables import Block, in_words, write_tables
from featstore.backbones.registry import TITLES
from featstore.datasets.pictures import decode
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError
from featstore.pipeline.results import EvaluationRun
from matcher.configuration import Frame, frame_of
from matcher.errors import InputError
from matcher.pairs import placed
from matcher.pck import RULE, Average, MatchedPair, RankedPair, best_and_worst, paper_rows

CHARTS: Mapping[str, Callable[[Scored], page.Chart | None]] = {
    "PCK over alpha": over_alpha,
    "By category": by_category,
    "By difficulty": by_difficulty,
    "Why matches are wrong": by_kind,
}
"""By the titles of their sections."""


READING = (
    "PCK@alpha is the share of keypoints that were matched within alpha times theta of the truth: higher is better, "
    "and a small alpha asks for more precision. A difference between two methods counts only where everything below "
    "but the method is the same.",
    "The image average takes each pair's PCK, then the mean over pairs; the point average takes all keypoints "
    "together, so that pairs with many count more. Papers mix them.",
    "Pairs share images, so they are no independent trials: the 95 % intervals resample images. Where two intervals "
    "overlap, the methods may still differ: `dualsd compare` tests that pair by pair.",
)
FRAMES = "Readouts here are measured in different frames; their figures are not comparable across frames."


def report_evaluation(path: Path, root: Path | None = None) -> Path:
    """Write `report.html`, `table.md` and `table.tex` into the folder of an evaluation.

    Args:
        path: The folder.
        root: The dataset's folder, where it was moved. Pairs are drawn only where their images are found; else the page
            says why not.

    Returns:
        Where the report is.

    Raises:
        EvaluationError: There is no evaluation.
        InputError: Nothing can be written.
    """
    run = EvaluationRun.open(path)
    scored, scoring, features, layers = Scored.of(run), run.scoring, run.features, _layers(run)
    where, name = f"{run.dataset} {run.split}", shlex.quote(str(path))
    overall = [overall_block(scored, average) for average in scored.by_average]
    header, rows = paper_rows(run.scored().scores, run.average)
    title = f"PCK in percent, {where}, {run.average.value} average"
    every = Block(f"Every readout: {title}", tuple(header), tuple(map(tuple, rows)), left_columns=2)
    notes = [f"{describe(scoring, features)}.", "Intervals of 95 %, images resampled.", *run.notes]
    blocks = [*overall, category_block(scored, scored.readout), every]
    write_tables(path, "table", title, blocks, notes, page.make_again(path))
    frames = {readout: scoring.frame_of(readout).value for readout in scoring.readouts}
    report = page.Page(
        kind="Evaluation",
        title=f"{in_words('Layer', [layer.layer for layer in scoring.layers])} on {where}",
        origin=run.description,
        headline=_headline(scored),
        highlights={
            "Dataset": page.list_line(run.dataset, run.split, run.matched.pairs),
            "Layers": "; ".join(": ".join(fact) for fact in layers.items()),
            **page.facts_of(features, "model", "prompt", "ensemble", *TITLES, "features", "adapter"),
            "Geometry": scoring.settings.geometry.value,
        },
        settings={
            "What was measured": {
                **page.facts_of(run.description, "dataset", "split", "categories", "n_pairs", "n_points", "pairs_hash"),
                **page.facts_of(run.description, "average", "theta"),
                "Alphas": scoring.alphas,
                "Found": scoring.threshold,
                "Frame of distances": [f"{readout}: {frame}" for readout, frame in frames.items()],
            },
            "Matching": page.facts_of(asdict(scoring.settings)),
            "Features": page.facts_of(features),
        },
        sections={
            "How to read it": [
                *READING,
                FRAMES if len(set(frames.values())) > 1 else None,
                page.demo_note(features.get("model")),
                *run.notes,
            ],
            "Over all pairs": overall,
            **chart_sections(CHARTS, scored),
            "Best and worst pairs": best_and_worst_parts(scored, root),
            "Go on from here": [
                page.Command(
                    "Score the same matches at other thresholds, or in the original frame, without matching again:",
                    f"dualsd score {name} --alphas 0.01..0.2:0.01 --frame original",
                ),
                page.Command(
                    "Ask whether another evaluation of the same pairs is better:", f"dualsd compare {name} OTHER_RUN"
                ),
                page.Command("Make this page again:", page.report_command(path)),
            ],
        },
    )
    return page.write_report(report, path, page.make_again(path))


def _headline(scored: Scored) -> page.Headline:
    pck, alpha, average = scored.intervals[scored.readout][scored.alpha].overall, scored.alpha, scored.average
    mean = "averaged over pairs" if average is Average.IMAGE else "all points together"
    rule = scored.run.description.get("theta")
    return pck_headline(
        f"PCK@{alpha:g}, {scored.readout}, {average.value} average",
        pck,
        f"{100 * pck.mean:.1f} % of the keypoints, {mean}, were found within {alpha:g} theta of where they lie"
        f"{'' if rule is None else f'; theta is the {rule}'}.",
        scored.run.matched.pairs,
        "The interval says how far the figure might move with other images of the same kind.",
    )


def _layers(run: EvaluationRun) -> dict[str, str]:
    layers, found = run.scoring.layers, {}
    for layer in layers:
        said = [] if layer.timestep is None else [f"t\u00a0=\u00a0{layer.timestep}"]
        said += [f"weight\u00a0{layer.weight:g}"] if len(layers) > 1 else []
        found[f"layer {layer.layer}"] = ", ".join(said) or "alone"
    return found


Places = NDArray[np.floating[Any]]
"""Points, (n, 2)."""

PAIRS_SHOWN = 4
"""Of the best, and of the worst."""
_HEIGHT, _WIDEST, _GAP = 360, 495, 12
"""Of a picture, in pixels: one and a half times as many as a page shows it with."""
_DPI = 150
_RIGHT, _WRONG = "#00b483", "#ff7a1a"
_DOT: dict[str, Any] = {"ms": 5.2, "mec": "white", "mew": 0.9}

LEGEND = (
    "Circles joined by a solid green line are right; a cross at the end of a dashed orange line is a wrong match, and "
    "a thin white line leads from it to the hollow circle where the keypoint really lies."
)


def best_and_worst_parts(scored: Scored, root: Path | None) -> list[page.Part]:
    """The pairs at the alpha and readout of the headline: their pictures, or, where those are not found, why not, and
    their names. root: the dataset's folder, where it was moved."""
    run, alpha = scored.run, scored.alpha
    ranked = best_and_worst(run.matched, scored.readout, alpha, run.scoring.pixels, PAIRS_SHOWN)
    listed = zip(("Best", "Worst"), ranked, strict=True)
    shown = [(title, one, run.matched[one.index]) for title, own in listed for one in own]
    rule = f"At alpha = {alpha:g}, {scored.readout}. {RULE}"
    kept, annotations = (
        None if own is None else Path(own) for own in map(run.description.get, ("root", "annotations"))
    )
    try:
        dataset = open_dataset(run.dataset, root or kept, annotations)
        pictures = read_pictures(dataset, [match for _, _, match in shown])
    except InputError as error:
        rows = tuple(
            (title.lower(), match.pair.category, match.pair.source, match.pair.target, f"{100 * one.pck:.1f}")
            for title, one, match in shown
        )
        block = Block("Best and worst pairs", ("", "category", "source", "target", f"PCK@{alpha:g}"), rows, 4)
        return [rule, f"Their pictures cannot be shown: {error}", block]
    galleries: dict[str, list[page.Chart]] = {}
    for title, one, match in shown:
        galleries.setdefault(title, []).append(_picture(scored, one, match, pictures))
    return [rule, LEGEND, *(page.Gallery(title, own) for title, own in galleries.items())]


def read_pictures(dataset: Dataset, pairs: Iterable[MatchedPair]) -> dict[str, Image.Image]:
    """The pictures of some pairs, by image id. Raises `DatasetError` or `ImageError` where one is missing, cannot be
    read, or is not of the size that it was matched in."""
    sizes: dict[str, tuple[int, int]] = {}
    for match in pairs:
        original = match.pair.in_original_frame()
        sizes |= {match.pair.source: original.source_size, match.pair.target: original.target_size}
    records = {image.id: image for image in dataset.images() if image.id in sizes}
    found = {}
    for name, size in sizes.items():
        if name not in records:
            raise DatasetError(f"{dataset.name} has no image {name!r}: it is not the dataset that was evaluated.")
        found[name] = decode(records[name], dataset.read(records[name]))
        if found[name].size != size:
            raise DatasetError(f"The image {name} is {found[name].size} pixels now and was {size}: it was replaced.")
    return found


def _picture(
    scored: Scored, ranked: RankedPair, match: MatchedPair, pictures: Mapping[str, Image.Image]
) -> page.Photographs:
    pair, original, right = match.pair, match.pair.in_original_frame(), ranked.right
    predicted = match.predictions[scored.readout].astype(np.float64)
    if frame_of(scored.readout) is Frame.RESIZED:
        settings = scored.run.scoring.settings
        extent, offset = placed(np.asarray(original.target_size), settings.image_size, settings.pad)
        predicted = (predicted - offset) * (extent / settings.image_size)
    text = (
        f"{pair.category}: {int(right.sum())} of {len(right)} keypoints right, mean distance {ranked.error:.2f} theta. "
        f"{pair.source} to {pair.target}."
    )
    points = (original.source_points, np.clip(predicted, 0, original.target_size), original.target_points)
    drawn = [
        pair_figure((pictures[pair.source], pictures[pair.target]), points, right, place) for place in (beside, below)
    ]
    return page.Photographs(drawn[0], text, text, narrow=drawn[1])


def beside(source: Image.Image) -> tuple[int, int]:
    """Where the target's corner is to the right of the source, in pixels."""
    return source.width + _GAP, 0


def below(source: Image.Image) -> tuple[int, int]:
    """Where it is under the source."""
    return 0, source.height + _GAP


def pair_figure(
    pictures: tuple[Image.Image, Image.Image],
    points: tuple[Places, Places, Places],
    right: NDArray[np.bool_],
    place: Callable[[Image.Image], tuple[int, int]],
) -> Figure:
    """Two pictures and what was matched.

    Args:
        pictures: Source and target.
        points: Those of the source, what was predicted, and the truth, (n, 2) each, in pixels of their picture.
        right: Which predictions are, (n,).
        place: `beside` or `below`: where the target's corner is.
    """
    scales = [min(_HEIGHT / picture.height, _WIDEST / picture.width) for picture in pictures]
    source, target = (
        picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
        for picture, scale in zip(pictures, scales, strict=True)
    )
    corner = left, top = place(source)
    both = Image.new("RGBA", (max(source.width, left + target.width), max(source.height, top + target.height)))
    both.paste(source)
    both.paste(target, corner)
    figure = Figure((both.width / _DPI, both.height / _DPI), dpi=_DPI)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(np.asarray(both), aspect="auto")
    starts = points[0] * scales[0] - 0.5  # a pixel's middle is a whole number here
    ends, truths = (own * scales[1] + (left - 0.5, top - 0.5) for own in points[1:])
    _mark_wrong(axes, starts[~right], ends[~right], truths[~right])
    _lines(axes, starts[right], ends[right], color=_RIGHT, lw=0.9)  # last, so that they lie on top
    axes.plot(*np.concatenate([starts[right], ends[right]]).T, "o", mfc=_RIGHT, **_DOT)
    return figure


def _mark_wrong(axes: Axes, starts: Places, ends: Places, truths: Places) -> None:
    _lines(axes, starts, ends, color=_WRONG, lw=0.9, ls=(0, (4, 3)))
    _lines(axes, ends, truths, edge="black", color="white", lw=0.7)
    axes.plot(*starts.T, "o", mfc=_WRONG, **_DOT)
    for colour, width in (("white", 2.4), (_WRONG, 1.2)):  # an edge would fill the ring
        axes.plot(*truths.T, "o", ms=6, mew=width, mfc="none", mec=colour)
    axes.plot(*ends.T, "x", ms=5.2, mew=1.6, mec=_WRONG, path_effects=[withStroke(linewidth=3, foreground="white")])


def _lines(axes: Axes, starts: Places, ends: Places, edge: str = "white", **how: Any) -> None:
    """On an edge that makes them seen on any picture."""
    ends_of_each = np.stack([starts, ends], axis=1).T  # x and y: (2, n) each
    axes.plot(*ends_of_each, path_effects=[withStroke(linewidth=1.8, foreground=edge, alpha=0.5)], **how)
