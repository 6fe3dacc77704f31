"""`report.html` and tables of an evaluation, from its run folder."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from cli.output import describe
from cli.reports import facts, page
from cli.reports.charts import Chart, by_group, chart_sections, over_alpha
from cli.reports.pairs import best_and_worst_parts
from cli.reports.scores import Scored, category_block, overall_block
from cli.reports.tables import Block, write_tables
from featstore.pipeline.results import EvaluationRun
from matcher.pck import Average, paper_rows

CHARTS: Mapping[str, Callable[[Scored], Chart | None]] = {
    "PCK over alpha": over_alpha.draw,
    "By category": by_group.by_category,
    "By difficulty": by_group.by_difficulty,
}
"""By the titles of their sections."""


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
    scored = Scored.of(run)
    overall = [overall_block(scored, average) for average in scored.by_average]
    header, rows = paper_rows(run.scored().scores, run.average)
    title = f"PCK in percent, {run.dataset} {run.split}, {run.average.value} average"
    blocks = [
        *overall,
        category_block(scored, scored.readout),
        Block(f"Every readout: {title}", tuple(header), tuple(map(tuple, rows)), left_columns=2),
    ]
    notes = [f"{describe(run.scoring, run.features)}.", "Intervals of 95 %, images resampled."]
    write_tables(path, "table", title, blocks, notes, page.make_again(path))
    report = page.Page(
        kind="Evaluation",
        title=f"{facts.in_words('Layer', [layer.layer for layer in run.scoring.layers])} on {run.dataset} {run.split}",
        created=facts.when(run.description.get("created")),
        headline=_headline(scored),
        highlights=_highlights(run),
        settings=_settings(run),
        sections=[
            page.Section("How to read it", _reading(run)),
            page.Section("Over all pairs", [page.Table(block) for block in overall]),
            *chart_sections(CHARTS, scored),
            page.Section("Best and worst pairs", best_and_worst_parts(scored, root)),
            page.Section("Go on from here", _commands(path)),
        ],
    )
    return page.write_report(report, path, page.make_again(path))


def _headline(scored: Scored) -> page.Headline:
    pck, alpha, average = scored.intervals[scored.readout][scored.alpha].overall, scored.alpha, scored.average
    mean = "averaged over pairs" if average is Average.IMAGE else "all in one heap"
    rule = scored.run.description.get("theta")
    theta = "" if rule is None else f"; theta is the {rule}"
    return page.Headline(
        f"PCK@{alpha:g}, {scored.readout}, {average.value} average",
        f"{100 * pck.mean:.2f}",
        "%",
        f"95 % interval {100 * pck.low:.2f} to {100 * pck.high:.2f}",
        f"{100 * pck.mean:.1f} % of the keypoints, {mean}, were found within {alpha:g} theta of where they lie{theta}. "
        "The interval says how far the figure might move with other images of the same kind.",
    )


def _highlights(run: EvaluationRun) -> page.Facts:
    named = {"model": "Model", "prompt": "Prompt", "ensemble": "Ensemble", "dino": "DINOv2", "features": "Features"}
    return {
        "Dataset": facts.list_line(run.dataset, run.split, run.matched.pairs),
        "Layers": "; ".join(": ".join(fact) for fact in _layers(run).items()),
        **facts.named_features(run.features, named),
        "Geometry": run.scoring.settings.geometry.value,
    }


def _layers(run: EvaluationRun) -> page.Facts:
    layers = run.scoring.layers
    found = {}
    for layer in layers:
        said = [] if layer.timestep is None else [f"t\u00a0=\u00a0{layer.timestep}"]
        said += [f"weight\u00a0{layer.weight:g}"] if len(layers) > 1 else []
        found[f"layer {layer.layer}"] = ", ".join(said) or "alone"
    return found


def _settings(run: EvaluationRun) -> list[page.FactGroup]:
    scoring = run.scoring
    measured = {
        "Average of the headline": run.average.value,
        "Alphas": [f"{alpha:g}" for alpha in scoring.alphas],
        "Theta": run.description.get("theta"),
        "Frame of distances": [f"{one}: {scoring.frame_of(one).value}" for one in scoring.readouts],
    }
    of_the_list = facts.list_facts(run.dataset, run.split, run.matched.pairs)
    return [
        page.FactGroup("What was measured", {**of_the_list, **facts.as_text(measured)}),
        page.FactGroup("Layers", _layers(run)),
        facts.matching_group([scoring.settings], scoring.readouts),
        facts.feature_group(run.features),
        facts.origin_group(run.description),
    ]


def _reading(run: EvaluationRun) -> list[page.Part]:
    texts = [
        "PCK@alpha is the share of keypoints that were matched within alpha times theta of the truth: higher is "
        "better, and a small alpha asks for more precision. A difference between two methods counts only where "
        "everything below but the method is the same.",
        "The image average takes each pair's PCK, then the mean over pairs; the point average takes all keypoints in "
        "one heap, so that pairs with many count more. Papers mix them.",
        "Pairs share images, so they are no independent trials: the 95 % intervals resample images. Where two "
        "intervals overlap, the methods may still differ: `dualsd compare` tests that pair by pair.",
    ]
    if len({run.scoring.frame_of(readout) for readout in run.scoring.readouts}) > 1:
        texts.append("Readouts here are measured in different frames; their figures are not comparable across frames.")
    if run.features.get("model") == "demo":
        texts.append(facts.DEMO_NOTE)
    return [page.Paragraph(text) for text in texts]


def _commands(path: Path) -> list[page.Part]:
    name = shlex.quote(str(path))
    return [
        page.Command(
            "Score the same matches at other thresholds, or in the original frame, without matching again:",
            f"dualsd score {name} --alphas 0.01..0.2:0.01 --frame original",
        ),
        page.Command("Ask whether another evaluation of the same pairs is better:", f"dualsd compare {name} OTHER_RUN"),
        page.Command("Make this page again:", page.report_command(path)),
    ]
