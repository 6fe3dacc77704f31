"""`dualsd demo`: the search and what it finds, on the embedded dataset and model, in a folder of its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.evaluate import evaluate
from cli.match import match
from cli.options import command_of
from cli.output import print_table, say
from cli.progress import TerminalProgress
from featstore.config import BuildConfig, EvalConfig, GridConfig, MatchConfig
from matcher.errors import InputError

if TYPE_CHECKING:
    from matcher.grid import GridScores
    from matcher.statistics import Interval

TRIED = tuple(range(50, 401, 50))
DRAWS = 2
"""Noise draws per map, a quarter of the usual number: four times as fast."""

ALPHAS = (0.05, 0.1)
CHOSEN_AT = 0.1
"""The alpha of the PCK that decides."""

TEXT = "a photo of a {category}"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's store, runs and picture.")] = Path(
        "dualsd-demo"
    ),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Cache, search and evaluate on the embedded demo, and draw one pair: the main job in two minutes or three.

    Timesteps and weights are chosen on val; what they are worth is measured on test.
    """
    from featstore.pipeline.grid import grid
    from featstore.pipeline.run_build import build
    from featstore.tuning.runs import free_name

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}.") from error
    store, runs = str(out / "demo.zarr"), out / "runs"
    what = GridConfig(layers=("2", "3"), timesteps=TRIED, weightings="sweep")
    tried = replace(what, store=store, prompt=TEXT, ensemble=DRAWS, device=device)
    with TerminalProgress() as progress:
        say(f"$ dualsd cache build --store {store}")
        build(BuildConfig(store=store, device=device), progress)
        say("", "timesteps and weights, chosen on val:", f"$ {command_of(tried, 'grid', always=('store', 'layers'))}")
        searched = grid(tried, progress)
    searched.forget()
    scores = searched.scores
    config = EvalConfig(store=store, prompt=TEXT, ensemble=DRAWS, readouts=("nn",), alphas=ALPHAS, device=device)
    _, both = best_of(scores, ("2", "3"), config)
    alone = {f"layer {layer}": best_of(scores, (layer,), config) for layer in ("2", "3")}
    asked = {
        **{name: own for name, (_, own) in alone.items()},
        "both, as the report has them": replace(both, timesteps=(261, 200), weights=(0.8, 0.6)),
        "both, as grid found them": both,
    }
    kept = {}
    for name, own in asked.items():
        kept[name] = runs / free_name(runs, "eval")
        say("", f"{name}:", f"$ {command_of(own, 'eval', always=('store', 'layers'))}")
        evaluate(replace(own, out=kept[name]))
    draw_demo_pair(store, out / "matches.png", device)
    print_leads(kept, max(alone, key=lambda name: alone[name][0]))
    say("", f"{out / 'matches.png'} shows one pair of test; {store} is an ordinary store: try `dualsd cache info`.")


def best_of(scores: "GridScores", layers: tuple[str, ...], config: EvalConfig) -> tuple[float, EvalConfig]:
    """The PCK that decides of the best timesteps and weights with exactly these layers, and how they are evaluated."""
    from matcher.pck import Average

    decisive = scores.pck(Average.IMAGE)[:, 0, scores.alphas.index(CHOSEN_AT)]
    tried = scores.configurations
    own = [
        index
        for index, one in enumerate(tried)
        if tuple(layer.layer for layer in one.layers) == layers and min(one.weights) > 0
    ]
    best = max(own, key=lambda index: decisive[index])
    # as they are printed, so that what is typed gives the same
    weights = tuple(round(weight, 3) for weight in tried[best].weights) if len(layers) > 1 else None
    found = replace(config, layers=layers, timesteps=tuple(tried[best].timesteps), weights=weights)
    return float(decisive[best]), found


def print_leads(kept: Mapping[str, Path], best_single: str) -> None:
    """The last table: PCK of every run with its interval, and how far it leads the best single layer, pair by pair."""
    from featstore.pipeline.compare import compare_runs
    from featstore.pipeline.results import EvaluationRun
    from matcher.pck import distances
    from matcher.statistics import bootstrap_mean

    opened = {name: EvaluationRun.open(path) for name, path in kept.items()}
    first = opened[best_single]
    found = compare_runs([first, *(run for name, run in opened.items() if name != best_single)], "nn", ALPHAS)
    leads = dict(zip((name for name in opened if name != best_single), (own for _, own in found.others), strict=True))
    rows = []
    for name, run in opened.items():
        measured = distances(run.matched, "nn")
        layers = run.scoring.layers
        cells = [
            name,
            ",".join(str(layer.timestep) for layer in layers),
            ":".join(f"{layer.weight:g}" for layer in layers),
        ]
        for alpha in ALPHAS:
            own = bootstrap_mean(run.matched.pairs, measured.hits(alpha) / measured.counts, 0).within(0, 1)
            lead = leads[name][alpha].overall.lead if name in leads else None
            cells += [_percent(own), "" if lead is None else _percent(lead, "+")]
        rows.append(cells)
    columns = [name for alpha in ALPHAS for name in (f"PCK@{alpha:g}", f"lead over {best_single}")]
    print_table(
        f"PCK in percent over {first.title}, with 95 % intervals, images resampled; leads are of the same pairs",
        ["", "t", "weights", *columns],
        rows,
        left_columns=3,
    )


def _percent(interval: "Interval", sign: str = "") -> str:
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def draw_demo_pair(store: str, picture: Path, device: str) -> None:
    """Match the keypoints of the first test pair from two image files, as `dualsd match` does, and draw them."""
    from featstore.datasets.registry import open_dataset

    dataset = open_dataset("demo", None)
    pair = dataset.pairs("test")[0]
    records = {record.id: record for record in dataset.images()}
    files = picture.with_name("source.ppm"), picture.with_name("target.ppm")
    for file, image in zip(files, (pair.source, pair.target), strict=True):
        file.write_bytes(dataset.read(records[image]))
    config = MatchConfig(
        source=files[0],
        target=files[1],
        points=tuple((round(float(x), 1), round(float(y), 1)) for x, y in pair.source_points),
        category=pair.category,
        prompt=TEXT,
        store=store,
        device=device,
        ensemble=DRAWS,
    )
    match(config, out=picture)
