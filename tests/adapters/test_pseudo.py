"""Weak labels against maps whose true matches are known, and against a plain version, cell by cell."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.adapters.pseudo import CYCLE, Labelling, cells_of, consistent, matches, pseudo_pairs, triangles
from featstore.datasets.records import AnnotatedPairs
from featstore.errors import AdapterError
from featstore.progress import Silent
from matcher.configuration import Geometry, LayerSpec, MatchSettings, Pad
from matcher.maps import MapsInMemory

SIDE, CHANNELS, SIZE = 8, 24, 64
LAYER = LayerSpec("2", None)
CPU = torch.device("cpu")
SETTINGS = MatchSettings(SIZE, Geometry.HALF_PIXEL)


def permuted(images: int, noise: float, seed: int = 0) -> tuple[MapsInMemory, list[NDArray[np.intp]]]:
    """Maps of one category whose cells are the same vectors in other orders, plus noise, and those orders: cell i of an
    image shows vector orders[image][i]."""
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(SIDE * SIDE, CHANNELS, generator=random)
    orders = [torch.randperm(SIDE * SIDE, generator=random) for _ in range(images)]
    maps: dict[tuple[str, str, int | None], Tensor] = {}
    for number, order in enumerate(orders):
        own = vectors[order] + noise * torch.randn(SIDE * SIDE, CHANNELS, generator=random)
        maps[f"cat/{number}", "2", None] = own.T.reshape(CHANNELS, SIDE, SIDE).contiguous()
    return MapsInMemory(maps), [order.numpy() for order in orders]


def label(maps: MapsInMemory, categories: dict[str, list[str]], **options: float) -> AnnotatedPairs:
    labelling = Labelling(**options)  # type: ignore[arg-type]
    return pseudo_pairs(categories, maps, [LAYER], SETTINGS, lambda _: (SIZE, SIZE), labelling, CPU, Silent())


def names(count: int) -> list[str]:
    return [f"cat/{number}" for number in range(count)]


def places(points: NDArray[np.float64]) -> NDArray[np.intp]:
    """The cells whose middles points are."""
    cells = (points + 0.5) * SIDE / SIZE - 0.5
    assert np.allclose(cells, cells.round())
    x, y = cells.round().astype(np.intp).T
    return y * SIDE + x


def test_labels_are_right() -> None:
    maps, orders = permuted(6, noise=0.2)
    pairs = label(maps, {"cat": names(6)}, confident=1.0, points=1000)
    assert {(pair.source, pair.target) for pair in pairs} == set(itertools.permutations(names(6), 2))
    assert (pairs.counts == SIDE * SIDE).all()  # what is the same up to a little noise is found, all of it
    for pair in pairs:
        source, target = (orders[int(name[-1])] for name in (pair.source, pair.target))
        assert (source[places(pair.source_points)] == target[places(pair.target_points)]).all()


def test_what_is_kept_is_right_more_often_than_what_matches() -> None:
    maps, orders = permuted(6, noise=1.0)
    hits, mutual_hits, nearest_hits = [], [], []
    for pair in label(maps, {"cat": names(6)}, points=1000):
        source, target = (orders[int(name[-1])] for name in (pair.source, pair.target))
        hits += (source[places(pair.source_points)] == target[places(pair.target_points)]).tolist()
    for one, other in itertools.permutations(range(6), 2):
        ours, theirs = (unit(maps.load(f"cat/{image}", LAYER)) for image in (one, other))
        goals = (ours @ theirs.T).argmax(dim=1).numpy()
        mutual = (theirs @ ours.T).argmax(dim=1).numpy()[goals] == np.arange(len(goals))
        right = orders[one] == orders[other][goals]
        nearest_hits += right.tolist()
        mutual_hits += right[mutual].tolist()
    assert np.mean(nearest_hits) < 0.7 < np.mean(mutual_hits) < np.mean(hits)


def unit(features: Tensor) -> Tensor:
    """The cells (N, C) of a map, of norm 1."""
    return torch.nn.functional.normalize(features.flatten(1).T, dim=1)


def plain_labels(maps: list[Tensor], relaxed: float) -> set[tuple[int, int]]:
    """Matches of cells of the first of three maps in the second, one cell at a time."""
    cells = [unit(features) for features in maps]

    def nearest(image: int, cell: int, other: int) -> int:
        return max(range(SIDE * SIDE), key=lambda place: float(cells[image][cell] @ cells[other][place]))

    def apart(one: int, other: int) -> float:
        return float(np.hypot(one % SIDE - other % SIDE, one // SIDE - other // SIDE))

    found = set()
    for start in range(SIDE * SIDE):
        goal = nearest(0, start, 1)
        around = nearest(2, nearest(1, goal, 2), 0)
        if apart(start, nearest(1, goal, 0)) <= relaxed and apart(start, around) <= max(relaxed, CYCLE):
            found.add((start, goal))
    return found


def plain_margin(source: Tensor, target: Tensor, start: int, goal: int) -> float:
    cosines = unit(source)[start] @ unit(target).T
    far = [
        float(cosines[place])
        for place in range(SIDE * SIDE)
        if (place % SIDE - goal % SIDE) ** 2 + (place // SIDE - goal // SIDE) ** 2 > (0.1 * SIDE) ** 2
    ]
    return float(cosines[goal]) - max(far)


@pytest.mark.parametrize("relaxed", [0.0, 1.0, 2.5])
def test_the_plain_version_finds_the_same(relaxed: float) -> None:
    maps, _ = permuted(3, noise=1.2, seed=int(10 * relaxed))
    own = [maps.load(name, LAYER) for name in names(3)]
    found = matches(torch.stack([unit(features) for features in own]), SIDE)
    for ends in itertools.permutations(range(3)):
        margins = consistent(found, ends, SIDE, relaxed)
        starts = margins.isfinite().nonzero()[:, 0].tolist()
        goals = found.best[ends[0], ends[1]][starts].tolist()
        assert set(zip(starts, goals, strict=True)) == plain_labels([own[end] for end in ends], relaxed)
        for start, goal in zip(starts, goals, strict=True):
            expected = plain_margin(own[ends[0]], own[ends[1]], start, goal)
            assert float(margins[start]) == pytest.approx(expected, abs=1e-5)


def test_relaxed_finds_more_and_points_are_bounded() -> None:
    maps, _ = permuted(5, noise=1.2)
    strict, loose = (label(maps, {"cat": names(5)}, relaxed=cells, points=1000) for cells in (0, 3))
    assert strict.counts.sum() < loose.counts.sum()
    assert label(maps, {"cat": names(5)}, points=3).counts.max() == 3


def test_the_confident_are_kept() -> None:
    maps, _ = permuted(3, noise=0.8)
    every, half = (
        {
            (pair.source, pair.target): set(places(pair.source_points).tolist())
            for pair in label(maps, {"cat": names(3)}, confident=share, points=1000)
        }
        for share in (1.0, 0.5)
    )
    for (source, target), starts in every.items():
        ours, theirs = (maps.load(name, LAYER) for name in (source, target))
        goals = (unit(ours) @ unit(theirs).T).argmax(dim=1).tolist()
        ranked = sorted(starts, key=lambda start: -plain_margin(ours, theirs, start, goals[start]))
        assert half[source, target] == set(ranked[: -(-len(ranked) // 2)])


def test_the_same_by_seed_in_any_order() -> None:
    maps, _ = permuted(7, noise=0.6)
    options = {"points": 5, "pairs": 12}

    def listed(order: list[str], seed: int) -> list[tuple[str, str, bytes, bytes]]:
        found = label(maps, {"cat": order}, seed=seed, **options)
        return [
            (pair.source, pair.target, pair.source_points.tobytes(), pair.target_points.tobytes()) for pair in found
        ]

    assert listed(names(7), 0) == listed(names(7)[::-1], 0) != listed(names(7), 1)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 20])
def test_triangles_cover_the_pairs(count: int) -> None:
    images = [f"cat/{number:02d}" for number in range(count)]
    every = triangles(images, Labelling(pairs=10_000), "cat")
    covered = {pair for triple in every for pair in itertools.permutations(triple, 2)}
    assert covered == set(itertools.permutations(images, 2))
    few = triangles(images, Labelling(pairs=6), "cat")
    assert len(few) == 1
    some = triangles(images, Labelling(pairs=6 * -(-count // 3)), "cat")
    assert {image for triple in some for image in triple} == set(images)  # each, before any comes often


def test_fine_maps_are_averaged() -> None:
    """96 cells a side become 48, each with the middle of its four."""
    features = torch.randn(4, 96, 96, generator=torch.Generator().manual_seed(0))
    for geometry, first in ((Geometry.HALF_PIXEL, 7.5), (Geometry.CORNERS, 0.5 * 767 / 95)):
        found = cells_of("cat/0", [features], [1.0], MatchSettings(768, geometry), (768, 384))
        assert found.vectors.shape == (48 * 48, 4)
        assert found.side == 48
        assert found.pixels[0] == pytest.approx([first, first / 2])
        units = torch.nn.functional.normalize(features, dim=0)[:, :2, 2:4].mean(dim=(1, 2))
        assert torch.allclose(found.vectors[1], units / units.norm(), atol=1e-5)


def test_padding_gives_no_point() -> None:
    features = torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    settings = MatchSettings(SIZE, Geometry.HALF_PIXEL, pad=Pad.SQUARE)
    found = cells_of("cat/0", [features], [1.0], settings, (200, 100))
    rows = found.inside.reshape(SIDE, SIDE)
    assert rows[2:6].all()
    assert not rows[:2].any()
    assert not rows[6:].any()


def test_too_few_images() -> None:
    maps, _ = permuted(2, noise=0.1)
    with pytest.raises(AdapterError, match="three images of a category, and no category has more than 2"):
        label(maps, {"cat": names(2)})


def test_nothing_survives() -> None:
    """Each two of three images match perfectly, but the way round ends half a map from its start."""
    ones, none = torch.eye(16), torch.zeros(16, 16)
    moved = ones.reshape(4, 4, 16).roll((2, 2), (0, 1)).reshape(16, 16)
    blocks = {"cat/0": [ones, none, moved], "cat/1": [ones, ones, none], "cat/2": [none, ones, ones]}
    images = {name: torch.cat(own, dim=1).T.reshape(48, 4, 4).contiguous() for name, own in blocks.items()}
    maps = MapsInMemory({(name, "2", None): features for name, features in images.items()})
    with pytest.raises(AdapterError, match="None of the matches between 1 triple"):
        label(maps, {"cat": names(3)})
    assert label(maps, {"cat": names(3)}, relaxed=3).counts.sum() == 6 * 8  # the confident half of 16
