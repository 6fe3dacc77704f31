"""Are the intervals and p values of `dualsd compare` what they say? Simulated benchmarks of known truth.

Run: `python -m benchmarks.statistics` (a few minutes on one core); `--markdown` prints the table of docs/statistics.md.

A simulated run is compared with another over the pairs of a benchmark's shape. What decides a pair's difference:

- `normal r`: the true difference, an effect of the source image, one of the target image (one image's two effects
  correlate with 0.5), and noise of the pair; r is how much images add to the mean's variance for 1 of noise (on the
  complete graph).
- `points`: 4 to 10 keypoints a pair, hit where a normal score is above 0; the score has effects of both images, of the
  pair and of the point, each of the two runs' sharing three quarters of its variance. The true PCK is a value of the
  normal distribution function.

Images count as drawn anew in each trial. 1,000 trials of true difference and 10,000 of none, unless told otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import NormalDist
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from matcher.pairs import MatchingPair
from matcher.statistics import CategoryGraph, Intervals, bootstrap, draw_images, graphs_of, permutation_test

Floats = NDArray[np.float64]

FLIPS = 999
"""Fewer than the command's, and other ones in each batch of trials, as are the resamples."""

BATCH = 100
"""Trials at once."""
_POINT = np.zeros((1, 2), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """Which pairs a benchmark has. source, target: (pairs,) numbers of images. points: (pairs,) of keypoints."""

    name: str
    pairs: tuple[MatchingPair, ...]
    source: NDArray[np.intp]
    target: NDArray[np.intp]
    points: NDArray[np.int64]

    @property
    def images(self) -> int:
        return int(max(self.source.max(), self.target.max())) + 1


def shape_of(name: str, categories: int, images: int, kept: int | None = None) -> Shape:
    """All ordered pairs of each category's images, or a seeded choice of `kept` a category."""
    random = np.random.default_rng(0)
    pairs, ends = [], []
    for category in range(categories):
        ordered = list(permutations(range(images), 2))
        chosen = range(len(ordered)) if kept is None else sorted(random.permutation(len(ordered))[:kept])
        for a, b in (ordered[place] for place in chosen):
            names = (f"{category:02d}/{image:02d}" for image in (a, b))
            pairs.append(MatchingPair(*names, f"{category:02d}", _POINT, _POINT, 1.0))
            ends.append((category * images + a, category * images + b))
    source, target = np.array(ends).T
    return Shape(name, tuple(pairs), source, target, random.integers(4, 11, len(pairs)))


SHAPES: dict[str, Callable[[], Shape]] = {
    "willow": lambda: shape_of("PF-Willow: 10 categories of 10 images", 10, 10),
    "spair": lambda: shape_of("SPair-71k: 18 categories of 27 images", 18, 27),
    "demo": lambda: shape_of("demo: 4 categories of 24 images, 150 of 552 pairs", 4, 24, 150),
    "one": lambda: shape_of("1 category of 27 images", 1, 27),
}


@dataclass(frozen=True, slots=True)
class Normal:
    """`normal r`, see the module."""

    ratio: float
    sizes: None = None

    @property
    def name(self) -> str:
        return "noise alone" if self.ratio == 0 else f"normal {self.ratio:g}"

    @property
    def truth(self) -> float:
        return 0.3

    def differences(self, shape: Shape, truth: float, trials: int, random: np.random.Generator) -> Floats:
        """(trials, pairs)."""
        images = len({pair.source for pair in shape.pairs if pair.category == "00"})
        first, second = random.standard_normal((2, trials, shape.images))
        scale = np.sqrt(self.ratio / (images - 1) / 3)
        as_target = 0.5 * first + np.sqrt(0.75) * second
        found = scale * (first[:, shape.source] + as_target[:, shape.target])
        return found + random.standard_normal((trials, len(shape.pairs))) + truth


@dataclass(frozen=True, slots=True)
class Hits:
    """`points`, see the module: differences of PCK. by_point: the average over points."""

    by_point: bool

    @property
    def name(self) -> str:
        return "points, by point" if self.by_point else "points, by image"

    @property
    def truth(self) -> float:
        return 0.1

    def differences(self, shape: Shape, truth: float, trials: int, random: np.random.Generator) -> Floats:
        """(trials, pairs)."""
        normal = NormalDist()
        levels = (normal.inv_cdf(0.5 + truth), normal.inv_cdf(0.5))
        ends = np.repeat(np.arange(len(shape.points)), shape.points)
        starts = np.cumsum(shape.points) - shape.points

        def of_both(count: int) -> tuple[Floats, ...]:
            shared, *own = random.standard_normal((3, trials, count))
            return tuple(np.sqrt(0.75) * shared + 0.5 * one for one in own)

        source, target, pair = (of_both(count) for count in (shape.images, shape.images, len(shape.pairs)))
        point = of_both(len(ends))
        scores = []
        for run, level in enumerate(levels):
            latent = np.sqrt(0.1) * (source[run][:, shape.source] + target[run][:, shape.target])
            latent += np.sqrt(0.1) * pair[run]
            hit = latent[:, ends] + np.sqrt(0.7) * point[run] + level > 0  # a score of variance 1
            scores.append(np.add.reduceat(hit, starts, axis=1, dtype=np.int64) / shape.points)
        return np.asarray(scores[0] - scores[1])


Data = Normal | Hits
DATA: tuple[Data, ...] = (Normal(0), Normal(0.5), Normal(1), Normal(4), Normal(16), Hits(False), Hits(True))


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares in 0..1: of intervals of 95 % that hold the truth, and of tests at 0.05 that find a difference where there
    is none; over all pairs, of the categories, where images are resampled and nothing is corrected, and where pairs are
    taken for independent."""

    covered: float
    covered_by_category: float
    covered_uncorrected: float
    covered_naively: float
    found: float
    found_by_category: float
    found_naively: float


def measure(shape: Shape, data: Data, trials: int, null_trials: int) -> Rates:
    """Simulate. Pairs are taken for independent in `trials` of either kind."""
    sizes = shape.points.astype(np.float64) if isinstance(data, Hits) and data.by_point else None
    graphs = graphs_of(shape.pairs, sizes)
    covered: list[list[np.floating]] = []
    found: list[list[np.floating]] = []
    found_naively: list[np.floating] = []
    for batch, random in _batches(trials, f"{shape.name}, {data.name}, {data.truth}"):
        values = data.differences(shape, data.truth, batch, random)
        own, each = bootstrap(graphs, values, int(random.integers(2**32)))
        plain, naive = resampled_images(graphs, values, random), resampled_pairs(values, sizes, random)
        kinds = ([own], each, [plain], [naive])
        covered.append([np.mean([_holds(one, data.truth) for one in kind]) for kind in kinds])
    for batch, random in _batches(null_trials, f"{shape.name}, {data.name}, none"):
        values = data.differences(shape, 0.0, batch, random)
        p, of_each = permutation_test(graphs, values, int(random.integers(2**32)), FLIPS)
        found.append([np.mean([one <= 0.05 for one in kind]) for kind in ([p], of_each)])
        if len(found_naively) * BATCH < trials:
            found_naively.append((flipped_pairs(values, sizes, random) <= 0.05).mean())
    of_images = np.mean(found, axis=0)
    return Rates(*np.mean(covered, axis=0).tolist(), *of_images.tolist(), float(np.mean(found_naively)))


def resampled_images(
    graphs: Sequence[CategoryGraph], values: Floats, random: np.random.Generator, resamples: int = 500
) -> Intervals:
    """The percentile intervals of resampled images as they come: (trials, pairs)."""
    sums, counts, mean = np.zeros((resamples, len(values))), np.zeros(resamples), np.zeros(len(values))
    for graph in graphs:
        drawn = draw_images(len(graph.names), resamples, random)
        times = drawn[:, graph.ends[:, 0]] * drawn[:, graph.ends[:, 1]]
        dyads = graph.of_dyads(values)
        sums += graph.share * times @ dyads.T
        counts += graph.share * times @ graph.dyad_weights
        mean += graph.share * dyads.sum(axis=1)
    low, high = np.quantile(sums / counts[:, None], [0.025, 0.975], axis=0)
    return Intervals(mean, low, high)


def resampled_pairs(
    values: Floats, sizes: Floats | None, random: np.random.Generator, resamples: int = 200
) -> Intervals:
    """The bootstrap that takes pairs for independent: (trials, pairs) to percentile intervals."""
    count = values.shape[1]
    weights = random.multinomial(count, np.full(count, 1 / count), size=resamples) * (1 if sizes is None else sizes)
    means = weights @ values.T / weights.sum(axis=1, keepdims=True)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return Intervals(np.average(values, axis=1, weights=sizes), low, high)


def flipped_pairs(values: Floats, sizes: Floats | None, random: np.random.Generator, flips: int = 199) -> Floats:
    """The permutation test that takes pairs for independent: p values (trials,)."""
    weighted = values if sizes is None else values * sizes
    signs = random.integers(0, 2, (values.shape[1], flips)) * 2.0 - 1
    as_far = np.abs(weighted @ signs) >= np.abs(weighted.sum(axis=1, keepdims=True))
    return np.asarray((1 + as_far.sum(axis=1)) / (1 + flips))


def _holds(intervals: Intervals, truth: float) -> Floats:
    return np.asarray((intervals.low <= truth) & (truth <= intervals.high))


def _batches(trials: int, what: str) -> Iterator[tuple[int, np.random.Generator]]:
    """Sizes of batches, which make up `trials`, and chance of their own, the same whenever it is asked for."""
    for start in range(0, trials, BATCH):
        yield min(BATCH, trials - start), np.random.default_rng([*what.encode(), start])


HEADER = (
    "shape",
    "data",
    "intervals cover",
    "a category's",
    "uncorrected",
    "pairs resampled",
    "test finds",
    "a category's",
    "pairs flipped",
)


def rows_of(shapes: Sequence[str], trials: int, null_trials: int) -> Iterator[tuple[str, ...]]:
    """Rows of `HEADER`, percent."""
    for name in shapes:
        shape = SHAPES[name]()
        for data in DATA:
            rates = measure(shape, data, trials, null_trials)
            yield (
                shape.name,
                data.name,
                f"{100 * rates.covered:.1f}",
                f"{100 * rates.covered_by_category:.1f}",
                f"{100 * rates.covered_uncorrected:.1f}",
                f"{100 * rates.covered_naively:.1f}",
                *(f"{100 * rate:.2f}" for rate in (rates.found, rates.found_by_category)),
                f"{100 * rates.found_naively:.1f}",
            )


def main(
    shapes: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SHAPES)}; default: all.")] = None,
    trials: Annotated[int, typer.Option(help="Of the intervals.")] = 1000,
    null_trials: Annotated[int, typer.Option(help="Of the test.")] = 10000,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table for docs/statistics.md.")] = False,
) -> None:
    """Simulate and print a table."""
    rows = rows_of(shapes or list(SHAPES), trials, null_trials)
    if markdown:
        for row in (HEADER, ("---",) * 2 + ("---:",) * 7):
            print("|", " | ".join(row), "|", flush=True)
        for row in rows:
            print("|", " | ".join(row), "|", flush=True)
        return
    table = Table(*HEADER, title="Percent; 95 % intervals, tests at 0.05", title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
