"""Weak labels: pairs with points for training where nobody has marked keypoints.

Triangles A, B, C of images of a category are matched all ways. A cell of A is a point of the pair A, B where its match
is mutual, the way A -> B -> C -> A ends near its start, and no other place fits nearly as well: what errs seldom comes
back. The idea is DIY-SC's (Dunkel et al. 2025), which chains mutual matches over images of neighbouring views and knows
masks and poses; here nothing but categories is known, and the chain is closed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from featstore.backbones.noise import generator
from featstore.datasets.records import AnnotatedPairs, Pair, SizeOf
from featstore.errors import AdapterError
from featstore.progress import Progress
from matcher.configuration import LayerSpec, MatchSettings
from matcher.geometry import cells_to_pixels, final_size
from matcher.maps import MapSource
from matcher.match import RADIUS, fuse, normalise
from matcher.pairs import placed

CELLS = 48
"""Cells per side that are matched at most; finer maps are averaged to as many, as every cell meets every other."""

KEPT = 64
"""Images whose cells stay in memory, as a category's come again and again: 1.1 GB of SD 2-1's two layers."""

CYCLE = 1.0
"""Cells by which the way round three images may miss its start, where matches need not be mutual but nearly."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """How labels are found.

    Args:
        seed: Of the choice of triangles and of points.
        relaxed: By how many cells the way back from B to A may miss its start; 0: mutual nearest neighbours. The way
            round three images may miss by as much, or by `CYCLE` where that is more.
        pairs: Of each category, at most.
        points: Of each pair, at most.
        confident: Share of a pair's consistent matches that are kept, (0, 1]: those of the largest margins. A margin is
            the cosine less that of the best cell more than `matcher.match.RADIUS` of the image's sides away.
    """

    seed: int = 0
    relaxed: float = 0.0
    pairs: int = 200
    points: int = 20
    confident: float = 0.5


def pseudo_pairs(
    categories: Mapping[str, Sequence[str]],
    maps: MapSource,
    layers: Sequence[LayerSpec],
    settings: MatchSettings,
    size_of: SizeOf,
    labelling: Labelling,
    device: torch.device,
    progress: Progress,
) -> AnnotatedPairs:
    """Pairs of images with weak labels, as a data set has annotated ones; a function of maps and seed.

    Args:
        categories: Image ids by category, in any order.
        maps: Where the images' maps come from.
        layers: Which are fused, by their weights.
        settings: How maps become matches, and how images became squares.
        size_of: The images' original sizes.
        labelling: How labels are found.
        device: Where it is computed.
        progress: Who is told how far it is.

    Returns:
        The pairs, category by category; theta is to be measured on the image.

    Raises:
        AdapterError: No category has three images, or nothing matches well enough.
        MapError: Maps are missing.
    """
    chosen = [
        (category, triangle)
        for category, images in sorted(categories.items())
        for triangle in triangles(images, labelling, category)
    ]
    if not chosen:
        most = max(map(len, categories.values()), default=0)
        raise AdapterError(
            f"Weak labels need three images of a category, and no category has more than {most}: add images, or put "
            "them into fewer categories."
        )

    @lru_cache(KEPT)
    def load(image: str) -> Cells:
        loaded = [maps.load(image, layer).to(device) for layer in layers]
        return cells_of(image, loaded, [layer.weight for layer in layers], settings, size_of(image))

    progress.start("weak labels", len(chosen), "triple")
    found: dict[tuple[str, str], Pair] = {}
    for category, triangle in chosen:
        for pair in _label(category, [load(image) for image in triangle], labelling):
            found.setdefault((pair.source, pair.target), pair)
        progress.advance()
    if not found:
        raise AdapterError(
            f"None of the matches between {len(chosen)} triples of images is mutual and comes back over a third image: "
            "give --relaxed a few cells, or take layers whose maps match better."
        )
    return AnnotatedPairs.of(found.values())


def triangles(images: Sequence[str], labelling: Labelling, category: str) -> list[tuple[str, str, str]]:
    """Triples of a category's images that have as many ordered pairs as are asked for, or all that there are; each
    image is in about as many of them as any other. None of fewer than three images."""
    names, random = sorted(images), generator(f"pseudo|{labelling.seed}|{category}")
    if len(names) < 3:
        return []
    found: dict[tuple[str, str, str], None] = {}
    covered: set[tuple[str, str]] = set()
    most = min(labelling.pairs, len(names) * (len(names) - 1))
    for _ in range(math.comb(len(names), 3)):  # rounds; a few do, but for the last pairs of all
        order = [names[place] for place in random.permutation(len(names))]
        for start in range(0, len(order), 3):
            first, second, third = sorted(order[(start + step) % len(order)] for step in range(3))
            new = set(permutations((first, second, third), 2)) - covered
            if new:
                found[first, second, third] = None
                covered |= new
            if len(covered) >= most:
                return list(found)
    return list(found)


def _label(category: str, images: Sequence["Cells"], labelling: Labelling) -> Iterator[Pair]:
    """The labelled pairs among three images; those without a point are left out."""
    found = matches(torch.stack([image.vectors for image in images]), images[0].side)
    for ends in permutations(range(3)):
        source, target = images[ends[0]], images[ends[1]]
        goals = found.best[ends[0], ends[1]].cpu().numpy()
        margins = consistent(found, ends, source.side, labelling.relaxed).numpy()
        starts = np.flatnonzero(np.isfinite(margins) & source.inside & target.inside[goals])
        kept = starts[choose(margins[starts], labelling, f"{source.image}|{target.image}")]
        if len(kept):
            yield Pair(
                source=source.image,
                target=target.image,
                category=category,
                source_points=source.pixels[kept],
                target_points=target.pixels[goals[kept]],
                names=tuple(f"match {number + 1}" for number in range(len(kept))),
            )


@dataclass(frozen=True, slots=True, eq=False)
class TriangleMatches:
    """Every cell of each of three images, N cells each, in the other two. best: (3, 3, N), the place among the cells of
    the second image of the one most like a cell of the first; margins: (3, 3, N), see `Labelling.confident`. An image
    in itself means nothing."""

    best: Tensor
    margins: Tensor


def matches(cells: Tensor, side: int) -> TriangleMatches:
    """cells: (3, N, C), of norm 1, N = side * side, row by row."""
    count = cells.shape[1]
    best = torch.zeros(3, 3, count, dtype=torch.long, device=cells.device)
    margins = torch.zeros(3, 3, count, device=cells.device)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
    far = (torch.cdist(places, places) > RADIUS * side).to(cells.device)  # (N, N)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        cosines = cells[first] @ cells[second].T  # (N, N)
        for source, target, rows in ((first, second, cosines), (second, first, cosines.T)):
            largest, found = rows.max(dim=1)
            other = rows.masked_fill(~far[found], -1).amax(dim=1)
            best[source, target], margins[source, target] = found, largest - other
    return TriangleMatches(best, margins)


def consistent(found: TriangleMatches, ends: Sequence[int], side: int, relaxed: float) -> Tensor:
    """Margins (N,) of the cells of the first of three images in the second; -inf where the match is not mutual, or the
    way over the third one does not come back. ends: the images' places. relaxed: see `Labelling`."""
    first, second, third = ends
    start = torch.arange(side * side, device=found.best.device)
    goal = found.best[first, second]
    back = found.best[second, first][goal]
    around = found.best[third, first][found.best[second, third][goal]]
    kept = (_apart(start, back, side) <= relaxed) & (_apart(start, around, side) <= max(relaxed, CYCLE))
    return torch.where(kept, found.margins[first, second], -torch.inf).cpu()


def _apart(one: Tensor, other: Tensor, side: int) -> Tensor:
    """Distances (N,) in cells between places among the cells of a map."""
    return torch.hypot((one % side - other % side).float(), (one // side - other // side).float())


def choose(margins: NDArray[np.float32], labelling: Labelling, pair: str) -> NDArray[np.intp]:
    """Which of a pair's n consistent matches become its points, in order: so many of the confident ones, drawn by the
    seed, that they lie all over the object and not where margins happen to be largest. margins: (n,)."""
    confident = np.argsort(-margins, kind="stable")[: math.ceil(labelling.confident * len(margins))]
    if len(confident) > labelling.points:
        random = generator(f"pseudo|{labelling.seed}|{pair}")
        confident = confident[random.choice(len(confident), labelling.points, replace=False)]
    return np.sort(confident)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """An image's N cells, row by row. vectors: (N, C), of norm 1. side: of the N. pixels: (N, 2), their middles in the
    original image. inside: (N,), whether that is in it, and not in what it was padded with."""

    image: str
    vectors: Tensor
    side: int
    pixels: NDArray[np.float64]
    inside: NDArray[np.bool_]


def cells_of(
    image: str, maps: Sequence[Tensor], weights: Sequence[float], settings: MatchSettings, size: tuple[int, int]
) -> Cells:
    """The cells of an image's fused maps, (C, h, w) each: averaged over squares of them until there are `CELLS` a side
    at most. size: the original image's (width, height)."""
    fused = fuse(maps, weights, 1, settings.upsample_align)
    fine = final_size([fused], 1)
    square = math.ceil(fine[0] / CELLS)
    vectors = functional.avg_pool2d(normalise(fused, dim=0)[None], square)[0]  # (C, side, side)
    middles = torch.arange(vectors.shape[1], dtype=torch.float64) * square + (square - 1) / 2
    places = torch.cartesian_prod(middles, middles).flip(1)  # (N, 2) as (x, y)
    resized = cells_to_pixels(places, settings.image_size, fine, settings.geometry).numpy()
    extent, offset = placed(np.array(size), settings.image_size, settings.pad)
    pixels = (resized - offset) * extent / settings.image_size
    inside = np.all((pixels >= 0) & (pixels <= np.array(size) - 1), axis=1)
    return Cells(image, normalise(vectors.flatten(1).T, dim=1), vectors.shape[1], pixels, inside)
