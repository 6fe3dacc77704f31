"""Pairs against cliques: validation PCK against UNet passes on the demo, several seeds.

A clique's images serve all ordered pairs among them, so a step of equal UNet passes learns from more pairs. Every way
gets the same number of passes. Run: `python -m benchmarks.samplers --work WORK [--out docs]`; it goes on where it was
stopped, and writes `samplers.png` and prints the table."""

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from featstore.datasets.demo import DemoDataset
from featstore.evaluation import in_resized_frame, sizes_from_files
from featstore.progress import Silent
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.sampling import open_sampler
from matcher.pairs import MatchingPair

SEEDS = (0, 1, 2)
PASSES = 2400
"""UNet passes a run, validation apart: 200 steps of 3 pairs, each of 2 images, for 2 layers."""

VALIDATIONS = 4
IMAGE_SIZE = 128


@dataclass(frozen=True)
class Way:
    """A sampler with its settings. passes: UNet passes a step."""

    name: str
    options: tuple[str, ...]
    passes: int

    @property
    def steps(self) -> int:
        """Steps that the passes suffice for."""
        return PASSES // self.passes


WAYS = (
    Way("3 pairs", ("--sampler", "pairs", "--batch", "3"), 12),
    Way("1 clique of 6", ("--sampler", "cliques", "--clique", "6"), 12),
    Way("1 clique of 6, rate 0.02", ("--sampler", "cliques", "--clique", "6", "--lr", "0.02"), 12),
    Way("2 cliques of 3", ("--sampler", "cliques", "--clique", "3", "--batch", "2"), 12),
    Way("1 clique of 12", ("--sampler", "cliques", "--clique", "12"), 24),
)


@dataclass(frozen=True)
class Curve:
    """One run: UNet passes made, and validation PCK@0.1 in percent after them. pairs: that all steps learned from."""

    passes: tuple[int, ...]
    pck: tuple[float, ...]
    pairs: int


def run(way: Way, seed: int, work: Path) -> Path:
    """Train, or go on; the run's folder."""
    name = f"{way.name.replace(' ', '-').replace(',', '')}-{seed}"
    folder = work / "runs" / name
    command = [sys.executable, "-m", "cli", "train"]
    if (folder / "run.json").exists():
        command += ["--resume", str(folder)]
    else:
        every = str(way.steps // VALIDATIONS)
        command += ["--mode", "class", "--store", str(work / "demo.zarr"), "--runs", str(work / "runs"), "--name", name]
        command += ["--seed", str(seed), "--steps", str(way.steps), "--val-every", every, *way.options]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    return folder


def curve(folder: Path, pairs: list[MatchingPair]) -> Curve:
    """Read a run's metrics; passes are those of the images that its batches hold."""
    opened = RunFolder.open(folder)
    sampler, layers = open_sampler(pairs, opened.settings), len(opened.settings.layers)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    made, learned, passes, pck = 0, 0, [], []
    for step, row in enumerate(rows):
        batch = [pairs[index] for index in sampler.batch(step)]
        learned += len(batch)
        made += layers * len({(image, pair.category) for pair in batch for image in (pair.source, pair.target)})
        if row["pck"]:
            passes.append(made)
            pck.append(100 * float(row["pck"]))
    return Curve(tuple(passes), tuple(pck), learned)


def draw(curves: dict[Way, list[Curve]], file: Path) -> None:
    """Mean over seeds, a line a way; the first two also with each seed's curve."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (way, own) in enumerate(curves.items()):
        passes = [mean(values) for values in zip(*(each.passes for each in own), strict=True)]
        pck = [mean(values) for values in zip(*(each.pck for each in own), strict=True)]
        axes.plot(passes, pck, marker="o", color=f"C{index}", linewidth=2 if index < 2 else 1, label=way.name)
        if index < 2:
            for each in own:
                axes.plot(each.passes, each.pck, color=f"C{index}", alpha=0.3, linewidth=1)
    axes.set_xlabel("UNet passes of training, both layers")
    axes.set_ylabel("validation PCK@0.1, %, nn, image average")
    axes.legend(title=f"a step; mean of {len(SEEDS)} seeds")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main(
    work: Annotated[Path, typer.Option(help="Folder for the store and the runs.")],
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("docs"),
) -> None:
    """Train every way with every seed, draw the curves, print the table."""
    work, dataset = work.resolve(), DemoDataset()
    if not (work / "demo.zarr").exists():
        store = ["--store", str(work / "demo.zarr"), "--t", "261,350"]
        subprocess.run(
            [sys.executable, "-m", "cli", "cache", "build", *store], check=True, cwd=Path(__file__).parents[1]
        )
    listed = dataset.pairs("trn")
    sizes = sizes_from_files(dataset, {image for pair in listed for image in (pair.source, pair.target)})
    pairs = in_resized_frame(dataset, listed, sizes.__getitem__, IMAGE_SIZE, Silent())
    curves = {way: [curve(run(way, seed, work), pairs) for seed in SEEDS] for way in WAYS}
    draw(curves, out / "samplers.png")
    middle = VALIDATIONS // 2 - 1
    table = Table("a step", "steps", "pairs learned from", "PCK@0.1 at half the passes", "at all", "best")
    for way, own in curves.items():
        ends = [[each.pck[middle] for each in own], [each.pck[-1] for each in own], [max(each.pck) for each in own]]
        cells = (f"{mean(values):.1f} ± {stdev(values):.1f}" for values in ends)
        table.add_row(way.name, str(way.steps), f"{mean(each.pairs for each in own):.0f}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
