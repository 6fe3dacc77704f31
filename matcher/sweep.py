"""Match the points of many pairs in many configurations, reading each map once or twice and correlating it once.

Pairs are taken a category and a target image at a time: all queries of a target share one matrix product a map,
and configurations that differ in timesteps and weights share all of them. `tests.reference` is the plain version that
this one is tested against.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matcher.configuration import Configuration, Frame, LayerSpec, MatchSettings, Readout, readout
from matcher.correlate import Family, Maps, Samples, match, sample
from matcher.errors import MatchError
from matcher.maps import MapSource, images_ahead, read_ahead
from matcher.pairs import MatchingPair, Pairs
from matcher.pck import Matches
from matcher.readout import check_channels, check_predictions

KEPT_BYTES = 2**30
"""Maps of a category's sources that are kept for when they are targets, as they came; those beyond are read again."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetMatches:
    """All that was predicted for the pairs into one target image.

    members: indices of the pairs. predictions: (configurations, readouts, points of all members in turn, 2) in pixels
    of each readout's frame.
    """

    members: tuple[int, ...]
    predictions: NDArray[np.float32]


def sweep(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    configurations: Sequence[Configuration],
    readouts: Sequence[str],
    device: torch.device,
) -> Iterator[TargetMatches]:
    """Every configuration and readout on every pair, a target image at a time.

    Each image's maps are asked for at most twice: for the queries that start in it, and as a target. Memory: the
    descriptors of one category's keypoints, `KEPT_BYTES`, the maps of four images (of more from a source that is far
    away, see `FarMapSource`), and blocks of correlations.

    Raises `MapError` and `MatchError` where maps are missing or do not fit together, a pair lacks what a readout
    needs, or a match is not finite.
    """
    if not configurations or not readouts:
        raise MatchError("There is nothing to match: name at least one layer and one readout.")
    pairs = Pairs.of(pairs)
    asked = [readout(name) for name in readouts]
    if pairs and any(known.frame is Frame.ORIGINAL for known in asked):
        pairs.in_original_frame()
    plan = _families(configurations, asked)
    wanted = tuple(dict.fromkeys(spec for family in plan for specs in family.maps for spec in specs))
    ahead = images_ahead(maps, wanted)
    for group in pairs.grouped("category").values():
        targets = pairs.grouped("target", group)
        shelf = _Shelf(maps, wanted, frozenset(targets))
        samples, rows = _sample_sources(pairs, group, shelf, plan, device, ahead)
        image: dict[LayerSpec, Tensor] = {}
        for target, raw in read_ahead(targets, shelf.take, ahead):
            members = targets[target]
            chosen = torch.from_numpy(rows[pairs.points(members)]).to(device)
            for spec, features in raw.items():
                # as float32, into the last image's memory where it fits: memory that is new costs more
                if spec not in image or image[spec].shape != features.shape:
                    image[spec] = torch.empty(features.shape, device=device)
                image[spec].copy_(features)
            found = torch.empty(len(configurations), len(readouts), len(chosen), 2, device=device)
            for family, sampled in zip(plan, samples, strict=True):
                for (_, spec), vectors in sampled.vectors.items():
                    check_channels(vectors.shape[2], image[spec].shape[0])
                positions = match(family, sampled, chosen, image, _original_sizes(pairs, members[0])[1])
                columns = torch.tensor([asked.index(known) for known in family.readouts], device=device)
                found[torch.tensor(family.members, device=device)[:, None], columns] = positions
            # all pairs of the target leave the device together
            predictions = found.cpu()
            if not predictions.isfinite().all():
                _refuse(pairs, members, readouts, predictions)
            yield TargetMatches(tuple(members), predictions.numpy())


def evaluate(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    layers: Sequence[LayerSpec],
    readouts: Sequence[str],
    settings: MatchSettings,
    device: torch.device,
    on_pairs: Callable[[int], None] = lambda _: None,
) -> Matches:
    """Match the points of many pairs in one configuration.

    Args:
        pairs: A list or `Pairs`; P of them with N points.
        maps: Where the images' maps come from.
        layers: The layers that are fused.
        readouts: Names, see `matcher.configuration.MODULES`.
        settings: How maps become matches.
        device: Where it is computed.
        on_pairs: Is told how many more pairs are done.

    Returns:
        By readout what was predicted, (N, 2), in the order of `pairs`.

    Raises:
        MapError, MatchError: See `sweep`.
    """
    pairs = Pairs.of(pairs)
    predictions = {name: np.empty((int(pairs.counts.sum()), 2), dtype=np.float32) for name in readouts}
    for target in sweep(pairs, maps, [Configuration(tuple(layers), settings)], readouts, device):
        points = pairs.points(target.members)
        for name, found in zip(readouts, target.predictions[0], strict=True):
            predictions[name][points] = found
        on_pairs(len(target.members))
    return Matches(pairs, predictions)


def _families(configurations: Sequence[Configuration], readouts: Sequence[Readout]) -> list[Family]:
    """The configurations by what they share, and the readouts by their frame."""
    grouped: dict[tuple[tuple[str, ...], MatchSettings], list[int]] = defaultdict(list)
    for index, configuration in enumerate(configurations):
        grouped[tuple(layer.layer for layer in configuration.layers), configuration.settings].append(index)
    found: list[Family] = []
    for (_, settings), members in grouped.items():
        those = tuple(configurations[index] for index in members)
        positions = zip(*(configuration.layers for configuration in those), strict=True)
        maps = tuple(tuple(dict.fromkeys(layer.map for layer in layers)) for layers in positions)
        by_frame = {frame: tuple(known for known in readouts if known.frame is frame) for frame in Frame}
        found += [Family(settings, frame, own, tuple(members), those, maps) for frame, own in by_frame.items() if own]
    return found


def _refuse(pairs: Pairs, members: Sequence[int], readouts: Sequence[str], predictions: Tensor) -> None:
    """Raise `MatchError` naming the first pair and readout without a match. predictions: (configurations, readouts,
    points of all members in turn, 2)."""
    own = predictions.split(pairs.counts[members].tolist(), dim=2)
    for index, found in zip(members, own, strict=True):
        for name, positions in zip(readouts, found.unbind(dim=1), strict=True):
            check_predictions(positions, name, f"{pairs[index].source} -> {pairs[index].target}")


def _sample_sources(
    pairs: Pairs, group: Sequence[int], shelf: "_Shelf", plan: Sequence[Family], device: torch.device, ahead: int
) -> tuple[list[Samples], NDArray[np.int64]]:
    """The samples of all source images, a family each, and which row of them each source point of the group is: (N,),
    of which other pairs' points have none."""
    parts: list[list[Samples]] = [[] for _ in plan]
    rows = np.full(int(pairs.counts.sum()), -1, dtype=np.int64)
    count = 0
    sources = pairs.grouped("source", group)
    frames = [pairs.resized] if pairs.original is None else [pairs.resized, pairs.original]
    for source, raw in read_ahead(sources, shelf.lend, ahead):
        own = pairs.points(sources[source])
        stacked = np.hstack([frame.source_points[own] for frame in frames])
        distinct, places = np.unique(stacked, axis=0, return_inverse=True)
        keypoints = {Frame.RESIZED: distinct[:, :2], Frame.ORIGINAL: distinct[:, 2:]}
        image = {spec: features.to(device) for spec, features in raw.items()}
        size = _original_sizes(pairs, sources[source][0])[0]
        for family, samples in zip(plan, parts, strict=True):
            samples.append(sample(family, torch.from_numpy(keypoints[family.frame]).to(device), size, image))
        rows[own] = places.reshape(-1) + count
        count += len(distinct)
    return [_join(samples) for samples in parts], rows


def _original_sizes(pairs: Pairs, row: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of a pair's images; (0, 0), which nothing asks for, where they are not known."""
    width, height, *target = (0, 0, 0, 0) if pairs.sizes is None else pairs.sizes[row].tolist()
    return (width, height), (target[0], target[1])


def _join(parts: Sequence[Samples]) -> Samples:
    """The samples of several images, one after the other. Raises `MatchError` where their maps differ in channels."""
    for key in parts[0].vectors:
        channels = sorted({part.vectors[key].shape[2] for part in parts})
        if len(channels) > 1:
            raise MatchError(
                f"The maps of one layer have {channels[0]} channels for one source and {channels[-1]} for another: all "
                "must come from the same layer of the same model."
            )
    return Samples(
        torch.cat([part.shares for part in parts]),
        {key: torch.cat([part.vectors[key] for part in parts]) for key in parts[0].vectors},
        {key: torch.cat([part.squares[key] for part in parts]) for key in parts[0].squares},
    )


class _Shelf:
    """The maps of images, kept where they will be asked for again and there is room."""

    def __init__(self, maps: MapSource, wanted: Sequence[LayerSpec], again: frozenset[str]) -> None:
        self._maps = maps
        self._wanted = wanted
        self._again = again
        self._kept: dict[str, Maps] = {}
        self._room = KEPT_BYTES
        self._counting = Lock()

    def lend(self, image: str) -> Maps:
        """Its raw maps, kept until they are taken."""
        loaded = {spec: self._maps.load(image, spec) for spec in self._wanted}
        size = sum(features.nbytes for features in loaded.values())
        with self._counting:  # several images are read at a time
            if image in self._again and size <= self._room:
                self._kept[image] = loaded
                self._room -= size
        return loaded

    def take(self, image: str) -> Maps:
        """Its raw maps, for the last time."""
        found = self._kept.pop(image, None)
        return {spec: self._maps.load(image, spec) for spec in self._wanted} if found is None else found
