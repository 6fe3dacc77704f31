"""One pair under one setting after another: what a change leaves as it is, is kept by the caller.

`matcher.correlate` says why that is possible: each layer's map is correlated alone, at its own resolution, and weights,
readouts and their parameters only mix what is there. So a slider costs a sum of a few scalar maps; another timestep the
product of one map. The numbers are those of `matcher.sweep`.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from matcher.configuration import NORM_EPSILON, Configuration, Correlations, Frame, Readout, readout
from matcher.correlate import Blend, Family, MapKey, Maps, blend_of, correlate, lengths_of, sample
from matcher.geometry import Upsampling, cells_to_pixels, squared_norms
from matcher.match import Found, judge
from matcher.readout import NN, cells_of, check_channels, check_predictions, doubt, largest

Keep = Callable[[Hashable, Callable[[], Tensor]], Tensor]
"""Gives the tensor that is kept under a key; where none is, it makes and, as long as there is room, keeps it."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveImage:
    """An image whose maps are at hand. name: tells it from all others for as long as tensors are kept. maps: float32,
    (C, h, w), by layers of weight 1."""

    name: Hashable
    maps: Maps


@dataclass(frozen=True, slots=True, eq=False)
class LiveFound:
    """Where n points lie in a target, and back: (n, 2), where the way back from each ends, in pixels of the source's
    resized frame."""

    found: Found
    back: Tensor


def find_live(
    source: LiveImage, target: LiveImage, points: Tensor, configuration: Configuration, name: str, keep: Keep
) -> LiveFound:
    """`matcher.match.find_points`, of which what other calls share is kept.

    Args:
        source: The image that has the points.
        target: The image to find them in; both have the configuration's layers.
        points: (n, 2), (x, y) in pixels of the resized frame.
        configuration: Layers, weights, and how maps become matches.
        name: The readout, one of the resized frame.
        keep: Where norms and correlations are kept.

    Raises:
        MatchError: Channels differ, or a match is not finite.
    """
    read, found = _match(source, target, points, configuration, name, keep)
    _, back = _match(target, source, found, configuration, name, keep)
    return LiveFound(judge(read, found, points, back), back)


def prepare(image: LiveImage, configuration: Configuration, keep: Keep) -> None:
    """Make what `find_live` will need of an image, whatever the points."""
    ups, _ = _family(configuration, NN).upsamplings(image.maps)
    for key in Blend.plain(configuration).keys:
        _norms(image, key, ups[key], keep)


def _family(configuration: Configuration, known: Readout) -> Family:
    maps = tuple((layer.map,) for layer in configuration.layers)
    return Family(configuration.settings, Frame.RESIZED, (known,), (0,), (configuration,), maps)


def _norms(image: LiveImage, key: MapKey, up: Upsampling, keep: Keep) -> Tensor:
    """Of the cells of an upsampled map, (H, W)."""
    features = image.maps[key[1]]
    return keep(("norms", image.name, key[1], up), lambda: squared_norms(features, up).sqrt())


def _match(
    source: LiveImage, target: LiveImage, points: Tensor, configuration: Configuration, name: str, keep: Keep
) -> tuple[Correlations, Tensor]:
    """Correlations, and the points that are read off them, (n, 2)."""
    known, settings = readout(name), configuration.settings
    family = _family(configuration, known)
    ups, size = family.upsamplings(target.maps)
    for _, spec in ups:
        check_channels(source.maps[spec].shape[0], target.maps[spec].shape[0])
    samples = sample(family, points, (0, 0), source.maps)
    # all that a correlation of one layer depends on besides the two images, the layer and its upsampling
    shared = settings.geometry, len(family.maps) > 1, known.rows, points.numpy().tobytes()
    lengths: dict[MapKey, Tensor | None] = {}
    products: dict[MapKey, Tensor] = {}
    for key in Blend.plain(configuration).keys:
        norms = _norms(target, key, ups[key], keep)
        lengths[key] = lengths_of(norms)
        products[key] = keep(
            ("products", source.name, target.name, key[1], ups[key], shared),
            partial(correlate, samples.vectors[key], target.maps[key[1]], ups[key], norms + NORM_EPSILON),
        )
    blend = blend_of(configuration, lengths)
    total = blend.sum(products, torch.empty(len(points), known.rows, *size))
    whole = total[:, 0] if known.rows == 1 else torch.einsum("nrhw,nr->nhw", total, samples.shares)
    best = largest(whole)
    nearest = cells_of(best, size) + doubt(whole, best)[:, None]
    read = Correlations(settings, whole, blend.scale(samples.squares), nearest, total, samples.shares)
    found = cells_to_pixels(known.read(read), settings.image_size, size, settings.geometry)
    check_predictions(found, name, "the source to the target map")
    return read, found
