"""What a grid and an evaluation cost beside the bare matrix products that they need, on maps of SD 2-1's shapes.

Run: `python -m benchmarks.grid` (all parts, about 8 minutes on 2 cores, 9 GB of disk for the last one), or
`python -m benchmarks.grid sweep single store memory` for some. Figures are ratios within one run; parts that are
compared take turns, and medians are taken, as machines are shared.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.synthetic_maps import IMAGE_SIZE, POINTS, FewMaps, all_pairs, few_maps, open_maps, write_store
from matcher.configuration import Configuration, LayerSpec, MatchSettings, all_layers_fused
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair
from matcher.sweep import sweep
from tests.reference import evaluate_plainly

CPU = torch.device("cpu")
SETTINGS = MatchSettings(IMAGE_SIZE)
IMAGES, SOURCES = 27, 26
"""Images of a category, and sources into each target, as in SPair-71k's test split."""

CATEGORIES = 18
TIMESTEPS = tuple(range(50, 401, 50))
WEIGHTS = ((1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.5, 0.5), (0.0, 1.0))
DUAL = all_layers_fused({"2": (261,), "3": (200,)}, [(0.8, 0.6)], SETTINGS)
SD4MATCH = ("nn", "bilinear", "softmax", "kernelsoftmax")
GIB = 2**30

Row = tuple[str, str, str]
"""What, the figure, the target."""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run_sweep(
    pairs: Sequence[MatchingPair], maps: MapSource, ways: Sequence[Configuration], readouts: Sequence[str]
) -> None:
    """A whole sweep, whose predictions are dropped."""
    for _ in sweep(pairs, maps, ways, readouts, CPU):
        pass


def bare_products(maps: FewMaps, targets: int, rows: int) -> Callable[[], None]:
    """The matrix products of all queries with all maps of each target, and nothing else; all is float32 in memory."""
    flat: list[list[Tensor]] = [[features.float().flatten(1) for features in image.values()] for image in maps.maps]
    vectors = {features.shape[0]: torch.randn(rows, features.shape[0]) for features in flat[0]}

    def multiply() -> None:
        for target in range(targets):
            for features in flat[target % len(flat)]:
                vectors[features.shape[0]] @ features

    return multiply


def taking_turns(works: Sequence[Callable[[], object]], turns: int) -> list[list[float]]:
    """Seconds of each piece of work, turn by turn, after one that is not counted."""
    for work in works:
        work()
    return [[seconds(work) for work in works] for _ in range(turns)]


def measure_sweep() -> list[Row]:
    """8 x 8 timesteps x 5 weightings, `nn`, one category."""
    maps = few_maps(3, {"2": TIMESTEPS, "3": TIMESTEPS})
    pairs = all_pairs(1, IMAGES, SOURCES)
    ways = all_layers_fused({"2": TIMESTEPS, "3": TIMESTEPS}, WEIGHTS, SETTINGS)
    bare = bare_products(maps, IMAGES, SOURCES * POINTS)
    turns = taking_turns([bare, lambda: run_sweep(pairs, maps, ways, ["nn"])], 3)
    ratio = median(swept / products for products, swept in turns)
    swept = median(turn[1] for turn in turns)
    sample = pairs[:: len(pairs) // 6][:6]
    plain = seconds(lambda: [evaluate_plainly(sample, maps, way.layers, ["nn"], SETTINGS, CPU) for way in ways[:3]])
    whole = plain / (3 * len(sample)) * len(pairs) * len(ways)
    return [
        (f"{len(ways)} fused cells, nn: sweep / products of its 16 maps", f"{ratio:.2f}", "<= 4"),
        (f"  {swept:.1f} s for {len(pairs)} pairs; maps of 3 images under {IMAGES} names", "", ""),
        (
            f"{len(ways)} plain evaluations / sweep (plain: {len(sample)} pairs of 3 cells timed, scaled)",
            f"{whole / swept:.0f}",
            ">= 30",
        ),
    ]


def measure_single() -> list[Row]:
    """One dual configuration."""
    maps = few_maps(3, {"2": (261,), "3": (200,)})
    pairs = all_pairs(1, IMAGES, SOURCES)
    turns = taking_turns(
        [
            bare_products(maps, IMAGES, SOURCES * POINTS),
            lambda: run_sweep(pairs, maps, DUAL, ["nn"]),
            bare_products(maps, IMAGES, 4 * SOURCES * POINTS),
            lambda: run_sweep(pairs, maps, DUAL, SD4MATCH),
        ],
        5,
    )
    alone = median(nearest / products for products, nearest, _, _ in turns)
    four = median(all_four / products for _, _, products, all_four in turns)
    milliseconds = [1000 * median(turn[index] for turn in turns) / len(pairs) for index in (1, 3)]
    return [
        ("one dual configuration, nn / products", f"{alone:.2f}", "<= 2"),
        ("  the same, all four readouts / products of four rows a point", f"{four:.2f}", "<= 2.5"),
        ("  milliseconds a pair, nn", f"{milliseconds[0]:.1f}", "<= 25"),
        ("  milliseconds a pair, all four readouts", f"{milliseconds[1]:.1f}", "<= 25"),
    ]


def measure_store() -> list[Row]:
    """The same evaluation from a store and from memory."""
    pairs = all_pairs(1, IMAGES, SOURCES)
    with tempfile.TemporaryDirectory() as folder:
        stored = write_store(Path(folder) / "maps.zarr", 1, IMAGES, {"2": 261, "3": 200})
        names = sorted({pair.source for pair in pairs})
        specs = [LayerSpec("2", 261), LayerSpec("3", 200)]
        held = MapsInMemory(
            {(name, spec.layer, spec.timestep): stored.load(name, spec) for name in names for spec in specs}
        )
        turns = taking_turns(
            [lambda: run_sweep(pairs, held, DUAL, ["nn"]), lambda: run_sweep(pairs, stored, DUAL, ["nn"])],
            5,
        )
    ratio = median(from_store / from_memory for from_memory, from_store in turns)
    return [("one dual configuration, nn: from a store (in the page cache) / from memory", f"{ratio:.2f}", "<= 1.2")]


def measure_memory(categories: int = CATEGORIES) -> list[Row]:
    """Peak memory of an evaluation of SPair-71k's size, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maps.zarr"
        write_store(path, categories, IMAGES, {"2": 261, "3": 200})
        report = peak_of_evaluation(path, categories)
    return [
        (f"peak RSS, {categories * IMAGES} images, {report['pairs']} pairs", f"{report['peak'] / GIB:.2f} GiB", "< 4"),
        (f"  {report['seconds']:.0f} s, {1000 * report['seconds'] / report['pairs']:.1f} ms a pair", "", ""),
    ]


def peak_of_evaluation(path: Path, categories: int) -> dict[str, float]:
    """Evaluate a store's dual maps, `nn`, in a fresh process: pairs, seconds and peak (bytes of resident memory)."""
    command = [sys.executable, "-m", "benchmarks.grid", "--evaluate", str(path), "--categories", str(categories)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    report: dict[str, float] = json.loads(finished.stdout)
    return report


def evaluate_store(path: Path, categories: int) -> None:
    """What `peak_of_evaluation` runs; prints JSON."""
    pairs = all_pairs(categories, IMAGES, SOURCES)
    maps = open_maps(path)
    took = seconds(lambda: run_sweep(pairs, maps, DUAL, ["nn"]))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    print(json.dumps({"pairs": len(pairs), "seconds": took, "peak": peak}))


PARTS = {"sweep": measure_sweep, "single": measure_single, "store": measure_store, "memory": measure_memory}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}; default: all.")] = None,
    evaluate: Annotated[Path | None, typer.Option(hidden=True)] = None,
    categories: Annotated[int, typer.Option(help="Of the part memory.")] = CATEGORIES,
) -> None:
    """Measure and print a table."""
    if evaluate is not None:
        evaluate_store(evaluate, categories)
        return
    table = Table(title=f"On {torch.get_num_threads()} threads", title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    for part in parts or PARTS:
        rows = measure_memory(categories) if part == "memory" else PARTS[part]()
        for row in rows:
            table.add_row(*row)
            print(*row, sep=" | ", file=sys.stderr, flush=True)
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
