"""The workbench's engine: points of one image found in another under one setting after another, from a store's maps.

No network is run. Maps are read when they are first asked for and kept in memory by use, as are their norms and the
correlations of points, so that a change of setting computes what it changes and no more (`matcher.live`).
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from featstore.adapters.base import ADAPTED
from featstore.backbones.registry import family_of
from featstore.config import AnyGeometry, Factor, GeometryName
from featstore.errors import StoreError
from featstore.pipeline.photos import Framing, Points, check_inside
from featstore.store.keys import MAPS, AdaptedExtractor, AnyExtractor, Extractor, PixelExtractor, timestep_of
from featstore.store.rows import RowArray
from featstore.store.store import Store
from matcher.configuration import PARAMETERS, Configuration, Geometry, LayerSpec, MatchSettings, Pad
from matcher.errors import InputError, MatchError
from matcher.geometry import cells_to_pixels
from matcher.live import LiveImage, find_live, prepare

MOST_POINTS = 256
"""Points that are matched at once: a correlation map is kept of each."""

MOST_UPSAMPLED = 8
"""Factor on the finest map up to which a setting may upsample."""

WARM_SHARE = 0.8
"""Of the memory that maps which nobody has asked for yet may fill."""

ReadoutName = Literal["nn", "bilinear", "softmax", "kernelsoftmax", "window"]
"""Readouts of the resized frame."""


@dataclass(frozen=True, slots=True)
class LiveLayer:
    """A layer, its timestep (None for one without noise), and the key of the extractor whose maps are meant."""

    layer: str
    t: int | None
    extractor: str

    @property
    def name(self) -> str:
        """What tells it from the same layer of other extractors."""
        return f"{self.extractor}/{self.layer}"


@dataclass(frozen=True, slots=True)
class LiveSetting:
    """How points are matched: layers, a weight each, the readout and its parameters, None for the usual ones; those of
    other readouts are of no use and stay unused."""

    layers: Annotated[tuple[LiveLayer, ...], Field(min_length=1, max_length=8)]
    weights: tuple[float, ...]
    readout: ReadoutName = "nn"
    beta: float | None = None
    sigma: float | None = None
    window: int | None = None
    geometry: AnyGeometry = "corners"
    upsample: Factor = 1
    upsample_align: GeometryName | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the readout, by the names that `--beta` and so on have."""
        own = PARAMETERS.get(self.readout, {})
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    def configuration(self, image_size: int, pad: Pad) -> Configuration:
        """As the matcher takes it. Raises `MatchError` for values that cannot be."""
        if len(self.weights) != len(self.layers):
            raise MatchError(f"{len(self.layers)} layer(s) but {len(self.weights)} weight(s): give one weight a layer.")
        if self.upsample > MOST_UPSAMPLED:
            raise MatchError(f"The workbench upsamples at most {MOST_UPSAMPLED}x, not {self.upsample}x.")
        names = PARAMETERS.get(self.readout, {})
        said = {names[name]: value for name, value in self.parameters.items()}
        align = Geometry(self.upsample_align or self.geometry)
        settings = MatchSettings(image_size, Geometry(self.geometry), self.upsample, align, pad=pad, **said)
        layers = zip(self.layers, self.weights, strict=True)
        return Configuration(tuple(LayerSpec(own.name, own.t, weight) for own, weight in layers), settings)


class ByUse:
    """Tensors kept by use: where they come to more than a limit, those that nobody asked for longest go."""

    def __init__(self, limit: int) -> None:
        """limit: bytes of all that is kept."""
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __call__(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key; made, and kept, where there is none."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        made = make()
        if made.nbytes <= self.limit:
            self._kept[key] = made
            self.bytes += made.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return made


class Pictured(Protocol):
    """An image that can be matched. name: which, as long as the process runs."""

    @property
    def name(self) -> Hashable: ...

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""

    @property
    def is_cached(self) -> bool:
        """Whether its maps take reading alone."""

    def map(self, layer: LiveLayer) -> Tensor:
        """(C, h, w), float32. Raises `InputError` in one of its kinds where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveMatch:
    """Where n points of image A lie in image B.

    Args:
        points: (n, 2), (x, y) in pixels of image B.
        back: (n, 2), where the way back ends, in pixels of image A.
        scores: (n,), see `featstore.pipeline.match.Matches`; so are margins and mutual, (n,) each.
        margins: See there.
        mutual: See there.
        correlations: (n, H, W), with every cell of B's final map.
        box: (x, y, width, height) in pixels of B that the outer edges of these cells enclose.
    """

    points: Points
    back: Points
    scores: Points
    margins: Points
    mutual: NDArray[np.bool_]
    correlations: NDArray[np.float32]
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class KeptExtractor:
    """An extractor whose maps a store has. layers: by layer and timestep, None for one that has none, which images have
    such a map, (images,)."""

    extractor: AnyExtractor
    layers: Mapping[str, Mapping[int | None, NDArray[np.bool_]]]

    @property
    def timesteps(self) -> dict[str, list[int | None]]:
        """By layer."""
        return {layer: [*own] for layer, own in self.layers.items()}


class LiveMaps:
    """A store's maps as they are asked for, and what is computed from them, within a limit of memory. Not to be used by
    two threads at once."""

    def __init__(self, store: Store, limit: int) -> None:
        """limit: bytes of maps, norms and correlations that are kept in memory."""
        self.store, self.keep = store, ByUse(limit)
        self._extractors: dict[str, AnyExtractor] = {}
        self._timesteps: dict[str, dict[str, list[int | None]]] = {}
        self._ahead: deque[tuple[Pictured, LiveSetting]] = deque()
        self._arrays: dict[LiveLayer, RowArray] = {}

    def refresh(self) -> None:
        """Look at the store anew: others may have added images and maps, or taken some away."""
        self.store = self.store.newest()
        self._arrays.clear()
        self._extractors.clear()

    def extractors(self) -> dict[str, KeptExtractor]:
        """By key, those that have maps. Rows are listed, none is read."""
        found = {}
        for key, extractor in self._known().items():
            layers: dict[str, dict[int | None, NDArray[np.bool_]]] = {}
            for path in self.store.folders(f"{MAPS}/{key}", 2):
                array = self.store.array(path)
                name = unquote(path.split("/")[2])
                layer = name if isinstance(extractor, PixelExtractor) else name.removeprefix("layer")
                if array is not None and (present := array.present()).any():
                    layers.setdefault(layer, {})[timestep_of(path)] = present
            if layers:
                found[key] = KeptExtractor(extractor, dict(sorted(layers.items())))
        self._timesteps = {key: own.timesteps for key, own in found.items()}
        return found

    def extractor(self, key: str) -> AnyExtractor:
        """Raises `StoreError` where the store has none of that key."""
        found = self._known().get(key) or self._known(anew=True).get(key)
        if found is None:
            raise StoreError(f"{self.store.path} has no maps of the extractor {key}: choose another one.")
        return found

    def map(self, row: int, layer: LiveLayer) -> Tensor:
        """The map (C, h, w) of an image, float32. Raises `StoreError` where it is not cached."""
        return self.keep(("map", row, layer), lambda: self._read(row, layer))

    def _read(self, row: int, layer: LiveLayer) -> Tensor:
        if layer not in self._arrays:
            extractor = self.extractor(layer.extractor)
            if (layer.layer, layer.t) != ADAPTED or not isinstance(extractor, AdaptedExtractor):
                family_of(layer.layer)  # it becomes part of a path
            array = self.store.maps(extractor, layer.layer, layer.t)
            if array is None:
                raise self._missing(row, layer)
            self._arrays[layer] = array
        try:
            return torch.from_numpy(self._arrays[layer].read((row,))).float()
        except StoreError as error:
            if self._arrays[layer].present()[row : row + 1].all():
                raise
            raise self._missing(row, layer) from error

    def _missing(self, row: int, layer: LiveLayer) -> StoreError:
        at = "" if layer.t is None else f" at t = {layer.t}"
        asked = f"--layers {layer.layer}{'' if layer.t is None else f' --t {layer.t}'}"
        if isinstance(self.extractor(layer.extractor), AdaptedExtractor):
            asked = "--adapter RUN" if layer.layer == ADAPTED[0] else f"--adapter RUN {asked}"
        return StoreError(
            f"{self.store.images.ids[row]} has no map of layer {layer.layer}{at} yet: choose another, or make it with "
            f"`dualsd cache maps {asked}`."
        )

    def _known(self, anew: bool = False) -> dict[str, AnyExtractor]:
        if anew or not self._extractors:
            for key, own in self.store.descriptions().items():
                for kind in (Extractor, PixelExtractor, AdaptedExtractor):
                    found: AnyExtractor | None = kind.from_description(own)
                    if found is not None and found.key == key:
                        self._extractors[key] = found
        return self._extractors

    def match(
        self, source: Pictured, target: Pictured, points: Sequence[Sequence[float]], setting: LiveSetting
    ) -> LiveMatch:
        """Find points of one image in another.

        Args:
            source: The image that has the points.
            target: The image to find them in.
            points: (n, 2), (x, y) in pixels of the source, inside it.
            setting: How.

        Raises:
            MatchError: For points or settings that cannot be.
            StoreError: For maps that are not cached.
        """
        asked = np.array(points, dtype=np.float32).reshape(-1, 2)
        if not 0 < len(asked) <= MOST_POINTS:
            raise MatchError(f"1 to {MOST_POINTS} points are matched at once, not {len(asked)}.")
        check_inside(asked, source.size, "the source image")
        size, pad = self.store.header.image_size, self.store.header.pad
        configuration = setting.configuration(size, pad)
        one, other = (_with_maps(image, configuration, setting) for image in (source, target))
        frames = [Framing(image.size, size, pad) for image in (source, target)]
        queries = torch.from_numpy(frames[0].to_square(asked))
        done = find_live(one, other, queries, configuration, setting.readout, self.keep)
        self._ahead = deque(self._next_ones((source, target), setting))
        found = done.found
        height, width = found.correlations.shape[1:]
        corners = torch.tensor([[-0.5, -0.5], [width - 0.5, height - 0.5]])
        shape = configuration.settings.geometry
        # a cell of FLOOR begins where one of half a pixel does
        edges = Geometry.HALF_PIXEL if shape is Geometry.FLOOR else shape
        low, high = frames[1].to_picture(cells_to_pixels(corners, size, (height, width), edges).numpy()).tolist()
        return LiveMatch(
            frames[1].to_picture(found.points.numpy()),
            frames[0].to_picture(done.back.numpy()),
            found.scores.numpy(),
            found.margins.numpy(),
            found.mutual.numpy(),
            found.correlations.numpy(),
            (low[0], low[1], high[0] - low[0], high[1] - low[1]),
        )

    def _next_ones(self, images: Sequence[Pictured], setting: LiveSetting) -> Iterator[tuple[Pictured, LiveSetting]]:
        """What a timestep's slider may ask for next, the nearest first."""
        steps = [
            (abs((step or 0) - (layer.t or 0)), place, step)
            for place, layer in enumerate(setting.layers)
            for step in self._timesteps.get(layer.extractor, {}).get(layer.layer, ())
            if step != layer.t
        ]
        for _, place, step in sorted(steps, key=lambda one: one[0]):
            layers = [*setting.layers]
            layers[place] = replace(layers[place], t=step)
            yield from ((image, replace(setting, layers=tuple(layers))) for image in images if image.is_cached)

    def expect(self, images: Sequence[Pictured], setting: LiveSetting) -> None:
        """Let `warm` prepare images that are about to be matched."""
        self._ahead = deque((image, setting) for image in images if image.is_cached)

    def warm(self) -> bool:
        """Prepare one of the maps that are expected to be asked for next, where there is room for it. Takes as long as
        reading a map does. Whether there are more."""
        if not self._ahead or self.keep.bytes > WARM_SHARE * self.keep.limit:
            return False
        image, setting = self._ahead.popleft()
        header = self.store.header
        with suppress(InputError):  # what is not there is told to who asks for it
            configuration = setting.configuration(header.image_size, header.pad)
            prepare(_with_maps(image, configuration, setting), configuration, self.keep)
        return bool(self._ahead)


def _with_maps(image: Pictured, configuration: Configuration, setting: LiveSetting) -> LiveImage:
    """An image with the maps of a setting."""
    specs = zip((layer.map for layer in configuration.layers), setting.layers, strict=True)
    return LiveImage(image.name, {spec: image.map(layer) for spec, layer in specs})


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image of a store (a `Pictured`). size: (width, height) as stored."""

    maps: LiveMaps
    row: int
    size: tuple[int, int]
    is_cached = True

    @property
    def name(self) -> Hashable:
        """Its row: no other image ever has that."""
        return self.row

    def map(self, layer: LiveLayer) -> Tensor:
        """See `Pictured.map`."""
        return self.maps.map(self.row, layer)
