"""A whole sweep against the plain version, one configuration at a time; and how often it asks for maps."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.datasets.registry import open_dataset
from featstore.pipeline.pairs import in_resized_frame, sizes_from_files
from featstore.pipeline.sources import open_features
from featstore.progress import Silent
from matcher.configuration import Configuration, Geometry, LayerSpec, MatchSettings, all_layers_fused, one_layer_each
from matcher.errors import MapError, MatchError
from matcher.geometry import pixels_to_cells
from matcher.maps import MapsInMemory, MapSource
from matcher.match import correlate, fuse
from matcher.pairs import MatchingPair
from matcher.sweep import sweep
from tests.matcher.test_against_reference import CPU, ON_CELLS, SIZE, smooth_maps, some_pairs
from tests.matcher.unchecked import Unchecked
from tests.reference import evaluate_plainly

DATA = Path(__file__).parents[3] / "shared" / "data"
FEATURES = DATA / "pf-willow-effnet-features.safetensors"
EXACT = frozenset({"nn", "bilinear"})
"""Readouts that jump where two cells are equally good."""
OF_ONE_MAP = [readout for readout in ON_CELLS if readout != "bilinear"]
"""Those that read one correlation map a point, where bilinear asks for four."""
TIMESTEPS = (50, 261, 400)
WEIGHTINGS = ((1.0, 0.0), (0.8, 0.6), (0.5, 0.5), (1.0, 3.0), (0.0, 1.0))
"""From one layer alone to the other alone; two of them not of norm 1."""
SHAPES = {"coarse": (20, 6, 6), "fine": (12, 12, 12)}

Predictions = NDArray[np.float32]
"""(configurations, readouts, points of all pairs in turn, 2)."""


def swept(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    configurations: Sequence[Configuration],
    readouts: Sequence[str] = ON_CELLS,
) -> Predictions:
    """What a sweep predicts, brought into the order of the pairs."""
    of_pairs: dict[int, Predictions] = {}
    for target in sweep(pairs, maps, configurations, readouts, CPU):
        assert len({pairs[index].target for index in target.members}) == 1
        ends = np.cumsum([len(pairs[index].source_points) for index in target.members])
        parts = np.split(target.predictions, ends[:-1], axis=2)
        assert not of_pairs.keys() & set(target.members)
        of_pairs |= dict(zip(target.members, parts, strict=True))
    return np.concatenate([of_pairs[index] for index in range(len(pairs))], axis=2)


def plainly(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    configurations: Sequence[Configuration],
    readouts: Sequence[str] = ON_CELLS,
) -> Predictions:
    """The same by the plain version, a configuration at a time."""
    found = []
    for configuration in configurations:
        matched = evaluate_plainly(pairs, maps, configuration.layers, readouts, configuration.settings, CPU)
        found.append([np.concatenate([match.predictions[readout] for match in matched]) for readout in readouts])
    return np.array(found)


def assert_alike(ours: Predictions, theirs: Predictions, readouts: Sequence[str] = ON_CELLS) -> None:
    """Soft readouts to 1e-2 px everywhere; nn at 99.9 % of the points, bilinear at 99 %: it asks for four cells a
    point, and two may be equally good to the last bit."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    for column, readout in enumerate(readouts):
        same = np.abs(ours[:, column] - theirs[:, column]).max(axis=-1) < 1e-2
        share = {"nn": 0.999, "bilinear": 0.99}.get(readout, 1.0)
        assert same.mean() >= share, f"{readout}: {same.mean():.4%} are alike"


def pck(pairs: Sequence[MatchingPair], predictions: Predictions, alpha: float) -> NDArray[np.float64]:
    """Both averages, (configurations, readouts, 2)."""
    truth = np.concatenate([pair.target_points for pair in pairs])
    counts = [len(pair.source_points) for pair in pairs]
    limits = np.repeat([alpha * pair.theta for pair in pairs], counts)
    right = np.linalg.norm(predictions - truth, axis=-1) <= limits
    of_pairs = np.stack([part.mean(axis=-1) for part in np.split(right, np.cumsum(counts)[:-1], axis=-1)], axis=-1)
    return np.stack([of_pairs.mean(axis=-1), right.mean(axis=-1)], axis=-1)


def every_cell(settings: MatchSettings, layers: Sequence[str]) -> tuple[Configuration, ...]:
    configurations = all_layers_fused(dict.fromkeys(layers, TIMESTEPS), WEIGHTINGS, settings)
    assert len(configurations) == 3 * 3 * 5
    return configurations


def maps_over_time(images: int, seed: int) -> MapsInMemory:
    """Smooth maps that change slowly from timestep to timestep, in half precision as stored."""
    random = torch.Generator().manual_seed(seed)
    maps = {}
    for image, (layer, (channels, height, width)) in itertools.product(range(images), SHAPES.items()):
        rough = torch.randn(4, channels, height // 2, width // 2, generator=random)
        smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")  # (4, C, h, w)
        for index, timestep in enumerate(TIMESTEPS):
            features = 5 * smooth[0] + 2 * smooth[1 + index] + 0.3 * torch.randn(smooth[0].shape, generator=random)
            maps[f"i{image}", layer, timestep] = features.half()
    return MapsInMemory(maps)


@pytest.mark.parametrize("geometry", list(Geometry))
def test_every_cell_of_a_sweep_equals_the_plain_version(geometry: Geometry) -> None:
    maps, pairs = maps_over_time(6, seed=21), some_pairs(6, seed=22)
    configurations = every_cell(MatchSettings(SIZE, geometry, 1, geometry), list(SHAPES))
    ours, theirs = swept(pairs, maps, configurations), plainly(pairs, maps, configurations)
    assert_alike(ours, theirs)
    for alpha in (0.1, 0.5):
        np.testing.assert_allclose(pck(pairs, ours, alpha), pck(pairs, theirs, alpha), rtol=0, atol=1e-3)
    # no two cells of the sweep are the same by accident: all have predictions of their own
    assert len({cell.tobytes() for cell in theirs[:, ON_CELLS.index("softmax")]}) == 3 + 3 * 3 * 3 + 3


def real_pairs_and_maps(images: int) -> tuple[list[MatchingPair], MapsInMemory]:
    """All pairs among the first images of two categories. The file has no timesteps: each stands for the map with
    channels of another scale and noise of a tenth of its spread."""
    dataset = open_dataset("pf-willow", DATA / "pf-willow")
    names: dict[str, list[str]] = {"car(G)": [], "winebottle(M)": []}
    for image in dataset.images():
        if image.category in names and len(names[image.category]) < images:
            names[image.category].append(image.id)
    chosen = {name for own in names.values() for name in own}
    pairs = dataset.pairs("test").among(chosen)
    sizes = sizes_from_files(dataset, chosen)
    file = open_features(FEATURES)
    maps = {}
    for layer, (step, timestep) in itertools.product(("s16", "s8"), enumerate(TIMESTEPS)):
        random = torch.Generator().manual_seed(step + (10 if layer == "s8" else 0))
        channels = file.load(pairs[0].source, LayerSpec(layer, None)).shape[0]
        gains = torch.rand(channels, 1, 1, generator=random) + 0.5  # of the timestep, the same in every image
        for name in sorted(chosen):
            features = file.load(name, LayerSpec(layer, None)).float()
            noise = 0.1 * features.std() * torch.randn(features.shape, generator=random)
            maps[name, layer, timestep] = (features * gains + noise).half()
    return in_resized_frame(dataset, pairs, sizes.__getitem__, 384, Silent()), MapsInMemory(maps)


@pytest.mark.skipif(not FEATURES.is_file(), reason="the PF-Willow data are not beside this checkout")
@pytest.mark.parametrize("geometry", [Geometry.CORNERS, Geometry.HALF_PIXEL])
def test_every_cell_of_a_sweep_over_real_features_equals_the_plain_version(geometry: Geometry) -> None:
    pairs, maps = real_pairs_and_maps(images=4)
    assert len(pairs) == 2 * 4 * 3
    configurations = every_cell(MatchSettings(384, geometry, 1, geometry), ["s16", "s8"])
    ours, theirs = swept(pairs, maps, configurations, OF_ONE_MAP), plainly(pairs, maps, configurations, OF_ONE_MAP)
    assert_alike(ours, theirs, OF_ONE_MAP)
    for alpha in (0.05, 0.1, 0.15):
        np.testing.assert_allclose(pck(pairs, ours, alpha), pck(pairs, theirs, alpha), rtol=0, atol=1e-3)
    # real features find something: chance at 0.1 is about 3 %
    assert pck(pairs, ours, 0.1)[:, 0].min() > 0.08


def mixed(geometry: Geometry = Geometry.CORNERS) -> list[Configuration]:
    """Single and fused, a weight of 0 among them, at one and two times the finest map's size, in both geometries."""
    found: list[Configuration] = []
    for own, factor in itertools.product((geometry, Geometry.HALF_PIXEL), (1, 2)):
        settings = MatchSettings(SIZE, own, factor, own)
        found += one_layer_each({"coarse": (50, 400), "fine": (261,)}, settings)
        found += all_layers_fused({"coarse": (50, 261), "fine": (400,)}, [(0.8, 0.6), (0.0, 2.0)], settings)
    # the same layers the other way round, and with other temperatures
    other = MatchSettings(SIZE, Geometry.CORNERS, 1, Geometry.HALF_PIXEL, beta=0.1, sigma=3.0, window=2)
    found += all_layers_fused({"fine": (50,), "coarse": (50,)}, [(0.6, 0.8)], other)
    return found[::2] + found[1::2]  # so that those which share their work are not neighbours


@pytest.mark.parametrize("readouts", [ON_CELLS, ON_CELLS[::-1], ["window", "nn"], ["nn"]], ids=lambda names: len(names))
def test_configurations_of_any_kind_go_into_one_sweep(readouts: list[str]) -> None:
    maps, pairs, configurations = maps_over_time(4, seed=23), some_pairs(4, seed=24), mixed()
    assert_alike(swept(pairs, maps, configurations, readouts), plainly(pairs, maps, configurations, readouts), readouts)


def test_a_layer_of_weight_0_changes_nothing_but_the_size() -> None:
    """It brings the map to the finest layer's size, which is what the other layer has already."""
    maps, pairs, settings = maps_over_time(4, seed=25), some_pairs(4, seed=26), MatchSettings(SIZE)
    alone = Configuration((LayerSpec("fine", 50),), settings)
    beside = Configuration((LayerSpec("coarse", 261, 0.0), LayerSpec("fine", 50, 0.7)), settings)
    predicted = swept(pairs, maps, [alone, beside], ["nn"])
    # one samples the raw map, the other normalised cells: descriptors between cells differ a little
    on_cells = [
        MatchingPair(
            pair.source,
            pair.target,
            pair.category,
            np.round(pair.source_points / 95 * 11).astype(np.float32) * np.float32(95 / 11),
            pair.target_points,
            pair.theta,
        )
        for pair in pairs
    ]
    exactly = swept(on_cells, maps, [alone, beside], ["nn"])
    np.testing.assert_array_equal(exactly[0], exactly[1])
    assert (predicted[0] == predicted[1]).all(axis=-1).mean() > 0.8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matcher.correlate.BLOCK_CELLS", 1),
        ("matcher.correlate.BLOCK_CELLS", 7 * 4 * 24 * 24),
        ("matcher.correlate.CHUNK_CELLS", 1),
        ("matcher.correlate.CHUNK_CELLS", 3 * 4 * 12 * 12),
    ],
)
def test_sizes_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    maps, pairs, configurations = maps_over_time(4, seed=27), some_pairs(4, seed=28), mixed()
    whole = swept(pairs, maps, configurations)
    monkeypatch.setattr(name, value)
    assert_alike(swept(pairs, maps, configurations), whole)


class Counting:
    """A source of maps that counts how often each is asked for."""

    def __init__(self, maps: MapSource) -> None:
        self.asked: Counter[tuple[str, LayerSpec]] = Counter()
        self._maps = maps
        self._counting = Lock()

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        with self._counting:
            self.asked[image, layer] += 1
        return self._maps.load(image, layer)


def within_categories(images: int, seed: int) -> list[MatchingPair]:
    """All pairs among the even images and among the odd ones, a category each."""
    return [pair for pair in some_pairs(images, seed) if (int(pair.source[1:]) - int(pair.target[1:])) % 2 == 0]


BYTES = 2 * (20 * 6 * 6 + 12 * 12 * 12)
"""Of one image's two maps at one timestep."""


@pytest.mark.parametrize(
    ("kept_bytes", "loads"),
    [(0, 2 * 4), (BYTES - 1, 2 * 4), (BYTES, 1 + 2 * 3), (3 * BYTES, 3 * 1 + 2), (4 * BYTES, 4 * 1), (2**30, 4 * 1)],
)
def test_maps_are_loaded_once_where_there_is_room_to_keep_them_and_else_twice(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int, loads: int
) -> None:
    pairs, settings = within_categories(8, seed=30), MatchSettings(SIZE)  # two categories of 4 images
    configurations = all_layers_fused({"coarse": (50,), "fine": (261,)}, WEIGHTINGS, settings)
    configurations += one_layer_each({"coarse": (50,), "fine": (261,)}, settings)
    maps = Counting(maps_over_time(8, seed=29))
    undisturbed = swept(pairs, maps, configurations)
    assert len(maps.asked) == 8 * 2
    assert set(maps.asked.values()) == {1}
    maps.asked.clear()
    monkeypatch.setattr("matcher.sweep.KEPT_BYTES", kept_bytes)
    np.testing.assert_array_equal(swept(pairs, maps, configurations), undisturbed)
    assert max(maps.asked.values()) <= 2
    for remainder, layer in itertools.product((0, 1), (LayerSpec("coarse", 50), LayerSpec("fine", 261))):
        assert sum(maps.asked[f"i{image}", layer] for image in range(remainder, 8, 2)) == loads


def test_an_image_that_is_source_or_target_alone_is_loaded_once_without_any_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [pair for pair in some_pairs(5, seed=31) if int(pair.source[1:]) < 2 <= int(pair.target[1:])]
    pairs = [pair for pair in pairs if pair.category == "a"]
    maps = Counting(maps_over_time(5, seed=32))
    monkeypatch.setattr("matcher.sweep.KEPT_BYTES", 0)
    swept(pairs, maps, one_layer_each({"fine": (50,)}, MatchSettings(SIZE)))
    assert {image for image, _ in maps.asked} == {"i0", "i1", "i2", "i4"}
    assert set(maps.asked.values()) == {1}


def test_only_maps_that_a_configuration_asks_for_are_loaded() -> None:
    maps = Counting(maps_over_time(3, seed=33))
    settings = MatchSettings(SIZE)
    configurations = all_layers_fused({"coarse": (50,), "fine": (400,)}, [(0.8, 0.6)], settings)
    swept(some_pairs(3, seed=34), maps, configurations, ["nn"])
    assert {(layer.layer, layer.timestep) for _, layer in maps.asked} == {("coarse", 50), ("fine", 400)}


def uneven_maps(holes: Callable[[str, Tensor], None]) -> Unchecked:
    """Maps wider than high and higher than wide, of another size in every image; `holes` may change them."""
    random = torch.Generator().manual_seed(35)
    maps = {}
    for image in range(4):
        for layer, (channels, height, width) in {"coarse": (9, 4 + image, 9), "fine": (6, 11, 6 + image)}.items():
            features = 4 * torch.randn(channels, height, width, generator=random)
            holes(f"i{image}", features)
            maps[f"i{image}", layer, None] = features.half()
    return Unchecked(maps)


def nothing(image: str, features: Tensor) -> None:
    pass


def a_fifth_of_the_inner_cells(image: str, features: Tensor) -> None:
    """Not at the border: some points lie there 1e-4 pixels beside a cell's centre, and if that is zero, their sample is
    what rounding leaves of the neighbour."""
    height, width = features.shape[1:]
    number = torch.arange(height * width).reshape(height, width)
    features[:, 1:-1, 1:-1] *= (number * 7 % 5 > 0)[1:-1, 1:-1]


def the_coarse_layer_of_one_image(image: str, features: Tensor) -> None:
    if image == "i1" and len(features) == 9:
        features[:] = 0


def all_of_one_image(image: str, features: Tensor) -> None:
    if image == "i2":
        features[:] = 0


def on_uneven_maps(geometry: Geometry) -> list[Configuration]:
    return [
        Configuration(tuple(LayerSpec(*layer) for layer in layers), MatchSettings(SIZE, geometry, factor, geometry))
        for factor in (1, 2)
        for layers in (
            [("coarse", None, 1.0)],
            [("fine", None, 2.0)],
            [("coarse", None, 0.8), ("fine", None, 0.6)],
            [("coarse", None, 1.0), ("fine", None, 0.0)],
        )
    ]


@pytest.mark.parametrize(
    "holes", [nothing, a_fifth_of_the_inner_cells, the_coarse_layer_of_one_image, all_of_one_image]
)
@pytest.mark.parametrize("geometry", [own for own in Geometry if own is not Geometry.FLOOR])  # whose cells of zeros tie
def test_uneven_maps_and_cells_of_zeros_equal_the_plain_version(
    geometry: Geometry, holes: Callable[[str, Tensor], None]
) -> None:
    maps, pairs, configurations = uneven_maps(holes), some_pairs(4, seed=36), on_uneven_maps(geometry)
    # bilinear samples single cells, where the plain version's sampling is not exact: of a cell of zeros it takes 1e-7
    # of the neighbour, which normalisation makes large
    readouts = OF_ONE_MAP if holes is a_fifth_of_the_inner_cells else ON_CELLS
    ours, theirs = swept(pairs, maps, configurations, readouts), plainly(pairs, maps, configurations, readouts)
    assert_alike(ours, theirs, readouts)


def test_bilinear_beside_a_cell_of_zeros() -> None:
    """A quarter of the point is a cell of zeros, which matches the first cell; the rest matches cell (3, 2)."""
    source, target = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    source[0, 1, 2] = target[0, 2, 3] = 5
    target[1, 0, 1] = 5
    maps = Unchecked({("a", "x", None): source, ("b", "x", None): target})
    point = np.array([[17.5, 10.0]], dtype=np.float32)
    pair = MatchingPair("a", "b", "c", point, point, 1.0)
    found = swept([pair], maps, one_layer_each({"x": (None,)}, MatchSettings(31)), ["bilinear", "nn"])
    np.testing.assert_allclose(found[0, :, 0], [[0.75 * 30, 0.75 * 20], [30, 20]], atol=1e-4)


def a_corner(image: str, features: Tensor) -> None:
    features[:, :4, :5] = 0


@pytest.mark.parametrize("geometry", list(Geometry))
def test_a_corner_of_zeros_equals_the_plain_version(geometry: Geometry) -> None:
    """Upsampled cells beside it are multiples of one cell, so they are equally good: nn may choose any of them."""
    maps, pairs, configurations = uneven_maps(a_corner), some_pairs(4, seed=36), on_uneven_maps(geometry)
    readouts = ["nn", "softmax"]
    ours, theirs = swept(pairs, maps, configurations, readouts), plainly(pairs, maps, configurations, readouts)
    assert_alike(ours[:, 1:], theirs[:, 1:], readouts[1:])
    for configuration, found in zip(configurations, ours[:, 0], strict=True):
        by_pair = np.split(found, np.cumsum([len(pair.source_points) for pair in pairs])[:-1])
        for pair, positions in zip(pairs, by_pair, strict=True):
            cosines = cosines_of(pair, maps, configuration)  # (n, H, W)
            height, width = cosines.shape[1:]
            cells = pixels_to_cells(torch.from_numpy(positions), SIZE, (height, width), geometry)
            x, y = cells.round().long().unbind(dim=1)
            torch.testing.assert_close(cells, cells.round(), rtol=0, atol=1e-4)
            chosen = cosines[torch.arange(len(cells)), y, x]
            torch.testing.assert_close(chosen, cosines.flatten(1).amax(dim=1), rtol=0, atol=2e-6)


def cosines_of(pair: MatchingPair, maps: MapSource, configuration: Configuration) -> Tensor:
    """Of a pair's points with every cell of the target's fused map, built as a whole: (n, H, W)."""
    settings, weights = configuration.settings, [layer.weight for layer in configuration.layers]
    source, target = (
        fuse([maps.load(image, layer) for layer in configuration.layers], weights, settings.upsample, settings.geometry)
        for image in (pair.source, pair.target)
    )
    size = (source.shape[1], source.shape[2])
    points = torch.from_numpy(pair.source_points)
    return correlate(source, pixels_to_cells(points, SIZE, size, settings.geometry), target)


def test_points_on_zeros_match_the_first_cell() -> None:
    """Their cosine with every cell is 0, and of equal cells the first in reading order counts; softmax is flat."""
    maps = Unchecked({("a", "x", None): torch.zeros(3, 5, 5), ("b", "x", None): torch.ones(3, 5, 5)})
    point = np.array([[40.0, 70.0]], dtype=np.float32)
    pairs = [MatchingPair(*names, "c", point, point, 1.0) for names in (("a", "b"), ("b", "a"), ("a", "a"))]
    found = swept(pairs, maps, [Configuration((LayerSpec("x", None),), MatchSettings(81))])[0]  # (readouts, 3, 2)
    for readout, positions in zip(ON_CELLS, found, strict=True):
        expected = 0 if readout in EXACT else 40
        np.testing.assert_allclose(positions, np.full((3, 2), expected), atol=1e-4)


def test_a_target_of_several_sources_gives_every_pair_its_own_points() -> None:
    """Cell (i, i) of each image holds the one-hot vector i: a point finds its like, whatever the order of the pairs."""
    features = torch.zeros(5, 4, 4)
    features[4] = 1
    for cell in range(4):
        features[:, cell, cell] = 0
        features[cell, cell, cell] = 1
    maps = MapsInMemory({(name, "x", None): features for name in "abc"})
    pairs = []
    for number, (source, target) in enumerate([("a", "c"), ("b", "a"), ("b", "c"), ("a", "c"), ("c", "a"), ("c", "c")]):
        cells = np.arange(number % 4, 4, dtype=np.float32)[::-1]
        points = np.stack([cells, cells], axis=1) * 10
        pairs.append(MatchingPair(source, target, "c", points, points, 1.0))
    settings = MatchSettings(31)
    found = swept(pairs, maps, one_layer_each({"x": (None,)}, settings), ["nn"])[0, 0]
    np.testing.assert_allclose(found, np.concatenate([pair.source_points for pair in pairs]), atol=1e-4)


def test_nothing_to_match() -> None:
    maps, pairs = maps_over_time(2, seed=37), some_pairs(2, seed=38)
    configurations = one_layer_each({"fine": (50,)}, MatchSettings(SIZE))
    with pytest.raises(MatchError, match="nothing to match"):
        list(sweep(pairs, maps, [], ["nn"], CPU))
    with pytest.raises(MatchError, match="nothing to match"):
        list(sweep(pairs, maps, configurations, [], CPU))
    assert list(sweep([], maps, configurations, ["nn"], CPU)) == []


def test_a_map_that_is_missing_comes_up_as_it_does_outside_of_threads() -> None:
    configurations = one_layer_each({"fine": (50, 999)}, MatchSettings(SIZE))
    with pytest.raises(MapError, match="999"):
        list(sweep(some_pairs(3, seed=1), maps_over_time(3, seed=2), configurations, ["nn"], CPU))


def test_a_sweep_that_is_left_early_can_be_started_again() -> None:
    maps, pairs, settings = smooth_maps(4, seed=39), some_pairs(4, seed=40), MatchSettings(SIZE)
    configurations = one_layer_each({"fine": (None,)}, settings)
    started = sweep(pairs, maps, configurations, ["nn"], CPU)
    first = next(started)
    started.close()  # type: ignore[attr-defined]
    again = next(sweep(pairs, maps, configurations, ["nn"], CPU))
    assert again.members == first.members
    np.testing.assert_array_equal(again.predictions, first.predictions)
    assert math.prod(first.predictions.shape[:2]) == 1
