"""Match the points of many pairs in many configurations, reading each map once or twice and correlating it once.

Pairs are taken a category and a target image at a time: all queries of a target share one matrix product a map,
and configurations that differ in timesteps and weights share all of them. `tests.reference` is the plain version that
this one is tested against.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matcher.configuration import Configuration, Layout, layouts
from matcher.errors import MatchError
from matcher.maps import LayerSpec, MapSource, images_ahead, read_ahead
from matcher.pairs import Frame, MatchingPair
from matcher.queries import Samples, distinct_keypoints, join, sample
from matcher.readout import Readout, check_predictions
from matcher.target import check_channels, match_cells, match_pixels_of_target

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
    readouts: Sequence[Readout],
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
    if any(readout.frame is Frame.ORIGINAL for readout in readouts):
        for pair in pairs:
            pair.in_original_frame()
    plan = layouts(configurations, readouts)
    wanted = tuple(dict.fromkeys(spec for layout in plan for specs in layout.maps for spec in specs))
    ahead = images_ahead(maps, wanted)
    for group in grouped(pairs, lambda pair: pair.category, range(len(pairs))).values():
        targets = grouped(pairs, lambda pair: pair.target, group)
        shelf = _Shelf(maps, wanted, frozenset(targets))
        samples, rows = _sample_sources(pairs, group, shelf, plan, device, ahead)
        image: dict[LayerSpec, Tensor] = {}
        for target, raw in read_ahead(targets, shelf.take, ahead):
            members = tuple(targets[target])
            chosen = torch.from_numpy(np.concatenate([rows[index] for index in members])).to(device)
            _into_float(raw, image, device)
            original = pairs[members[0]].original
            found = torch.empty(len(configurations), len(readouts), len(chosen), 2, device=device)
            for layout, sampled in zip(plan, samples, strict=True):
                check_channels(sampled, image)
                if layout.frame is Frame.RESIZED:
                    positions = match_cells(layout, configurations, sampled, chosen, image)
                else:
                    assert original is not None, "checked above"
                    size = original.target_size
                    positions = match_pixels_of_target(layout, configurations, sampled, chosen, image, size)
                columns = torch.tensor([readouts.index(readout) for readout in layout.readouts], device=device)
                found[torch.tensor(layout.members, device=device)[:, None], columns] = positions
            # all pairs of the target leave the device together
            predictions = found.cpu()
            if not predictions.isfinite().all():
                _refuse(pairs, members, rows, readouts, predictions)
            yield TargetMatches(members, predictions.numpy())


def _refuse(
    pairs: Sequence[MatchingPair],
    members: Sequence[int],
    rows: Mapping[int, NDArray[np.int64]],
    readouts: Sequence[Readout],
    predictions: Tensor,
) -> None:
    """Raise `MatchError` naming the first pair and readout without a match. predictions: (configurations, readouts,
    points of all members in turn, 2)."""
    own = predictions.split([len(rows[index]) for index in members], dim=2)
    for index, found in zip(members, own, strict=True):
        for readout, positions in zip(readouts, found.unbind(dim=1), strict=True):
            check_predictions(positions, readout, f"{pairs[index].source} -> {pairs[index].target}")


def grouped(
    pairs: Sequence[MatchingPair], key: Callable[[MatchingPair], str], members: Sequence[int]
) -> dict[str, list[int]]:
    """Indices of pairs by a key, both in the order in which they come."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in members:
        groups[key(pairs[index])].append(index)
    return dict(groups)


def _sample_sources(
    pairs: Sequence[MatchingPair],
    group: Sequence[int],
    shelf: "_Shelf",
    plan: Sequence[Layout],
    device: torch.device,
    ahead: int,
) -> tuple[list[Samples], dict[int, NDArray[np.int64]]]:
    """The samples of all source images, a layout each, and for each pair of the group which rows of them are its."""
    parts: list[list[Samples]] = [[] for _ in plan]
    rows: dict[int, NDArray[np.int64]] = {}
    count = 0
    sources = grouped(pairs, lambda pair: pair.source, group)
    for source, raw in read_ahead(sources, shelf.lend, ahead):
        keypoints = distinct_keypoints(pairs, sources[source])
        image = {spec: features.to(device) for spec, features in raw.items()}
        for layout, samples in zip(plan, parts, strict=True):
            samples.append(sample(layout, keypoints, image))
        rows |= {index: own + count for index, own in keypoints.rows.items()}
        count += len(keypoints.resized)
    return [join(samples) for samples in parts], rows


def _into_float(raw: Mapping[LayerSpec, Tensor], image: dict[LayerSpec, Tensor], device: torch.device) -> None:
    """Put the maps of an image into `image` as float32, into the last image's memory where they fit: memory that is new
    costs more than the conversion."""
    for spec, features in raw.items():
        if spec not in image or image[spec].shape != features.shape:
            image[spec] = torch.empty(features.shape, device=device)
        image[spec].copy_(features)


class _Shelf:
    """The maps of images, kept where they will be asked for again and there is room."""

    def __init__(self, maps: MapSource, wanted: Sequence[LayerSpec], again: frozenset[str]) -> None:
        self._maps = maps
        self._wanted = wanted
        self._again = again
        self._kept: dict[str, Mapping[LayerSpec, Tensor]] = {}
        self._room = KEPT_BYTES
        self._counting = Lock()

    def lend(self, image: str) -> Mapping[LayerSpec, Tensor]:
        """Its raw maps, kept until they are taken."""
        loaded = {spec: self._maps.load(image, spec) for spec in self._wanted}
        size = sum(features.nbytes for features in loaded.values())
        with self._counting:  # several images are read at a time
            if image in self._again and size <= self._room:
                self._kept[image] = loaded
                self._room -= size
        return loaded

    def take(self, image: str) -> Mapping[LayerSpec, Tensor]:
        """Its raw maps, for the last time."""
        found = self._kept.pop(image, None)
        return {spec: self._maps.load(image, spec) for spec in self._wanted} if found is None else found
