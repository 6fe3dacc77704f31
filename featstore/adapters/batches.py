"""What a step learns from: which pairs, mirrored or not, and the maps of their images, in memory or read ahead."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featstore.adapters.base import spell_keys
from featstore.adapters.losses import Image, PointPair
from featstore.backbones.base import MapKey
from featstore.backbones.noise import generator
from featstore.datasets.groups import mirrored
from featstore.errors import AdapterError
from featstore.tuning.step import RandomPairs
from matcher.configuration import LayerSpec
from matcher.maps import MapSource
from matcher.pairs import MatchingPair, Pairs

GROUP = 3
"""Images whose pairs are learned from together: each is adapted once for up to four pairs."""

IN_MEMORY = 2**31
"""Bytes of maps that are kept in memory, as they came; where those of all images take more, none is kept, and the next
steps' are read meanwhile."""


@dataclass(frozen=True)
class GroupedPairs:
    """Batches of `size` pairs among few images: of each step's first pairs, which come by turns as `RandomPairs` has
    them, with a third image of the category, and all that lies among the three. A function of step and seed."""

    pairs: Pairs
    size: int
    seed: int

    @cached_property
    def _known(self) -> tuple[dict[tuple[int, int], int], dict[int, set[int]]]:
        """The place of each pair, by its ends, and each image's neighbours."""
        ends = list(zip(self.pairs.source.tolist(), self.pairs.target.tolist(), strict=True))
        near: dict[int, set[int]] = defaultdict(set)
        for one, other in ends:
            near[one].add(other)
            near[other].add(one)
        return {own: row for row, own in enumerate(ends)}, near

    def batch(self, step: int) -> list[int]:
        """Places of the pairs of a step, counted from 0."""
        rows, near = self._known
        random = generator(f"group|{self.seed}|{step}")
        firsts = RandomPairs(len(self.pairs), self.size, self.seed).batch(step)
        found: dict[int, None] = {}
        for first in firsts:
            one, other = int(self.pairs.source[first]), int(self.pairs.target[first])
            thirds = sorted((near[one] & near[other]) or (near[one] | near[other]) - {one, other})
            group = [one, other, *([thirds[int(random.integers(len(thirds)))]] if thirds else [])]
            own = [rows[a, b] for a in group for b in group if (a, b) in rows]
            found |= dict.fromkeys([first, *own])
            if len(found) >= self.size:
                break
        return list(found)[: self.size]


def plain(pair: MatchingPair) -> PointPair:
    """As it is."""
    points = (torch.from_numpy(np.ascontiguousarray(own)) for own in (pair.source_points, pair.target_points))
    return PointPair((pair.source, False), (pair.target, False), *points)


@dataclass(frozen=True, slots=True)
class Mirror:
    """Mirrors half of the pairs, in their maps. dataset: whose keypoints have sides. size: S of the images. names: all
    keypoints of a category, none where they have no names. seed: of the choice."""

    dataset: str
    size: int
    names: Mapping[str, Collection[str]]
    seed: int

    def of(self, pair: MatchingPair, step: int) -> PointPair:
        """A pair of a step: one in two as it is; both images mirrored; or, where keypoints have sides, the source
        alone, whose keypoints are then those of the other side."""
        random = generator(f"mirror|{self.seed}|{step}|{pair.source}|{pair.target}")
        own, turn = plain(pair), random.random()
        if turn < 0.5:
            return own
        source = self._turned(own.source_points)
        ends = self._ends(pair) if turn < 0.75 else None
        if ends is None:
            return PointPair((pair.source, True), (pair.target, True), source, self._turned(own.target_points))
        return replace(
            own, source=(pair.source, True), source_points=source[ends[0]], target_points=own.target_points[ends[1]]
        )

    def _turned(self, points: Tensor) -> Tensor:
        return torch.stack([self.size - 1 - points[:, 0], points[:, 1]], dim=1)

    def _ends(self, pair: MatchingPair) -> tuple[list[int], list[int]] | None:
        """Which point of the target each point of the mirrored source is; None where no keypoint has a side, or none
        is left."""
        if pair.names is None:
            return None
        other = mirrored(self.dataset, pair.category, self.names.get(pair.category, ()))
        place = {name: index for index, name in enumerate(pair.names)}
        partners = [place.get(other.get(name, name)) for name in pair.names]
        found = [(index, partner) for index, partner in enumerate(partners) if partner is not None]
        if not found or not any(name in other for name in pair.names):
            return None
        return [index for index, _ in found], [partner for _, partner in found]


def names_of(pairs: Pairs) -> dict[str, frozenset[str]]:
    """All keypoints of each category, by name; none where they have none."""
    if pairs.keypoints is None:
        return {}
    names, places = pairs.keypoints
    groups = pairs.grouped("category")
    return {category: frozenset(names[n] for n in set(places[pairs.points(own)])) for category, own in groups.items()}


class Shelf:
    """Maps of images, kept in memory where all of them fit in `IN_MEMORY`."""

    def __init__(self, maps: MapSource, keys: Sequence[MapKey], images: Sequence[str], limit: int = IN_MEMORY) -> None:
        self._maps, self._layers = maps, {key: LayerSpec(*key) for key in keys}
        self._kept: dict[str, dict[MapKey, Tensor]] = {}
        self.shapes: dict[MapKey, tuple[int, ...]] = {}
        self.in_memory = False
        first = self.load(images[0])
        self.bytes = len(images) * sum(own.nbytes for own in first.values())
        self.in_memory = self.bytes <= limit

    def load(self, image: str) -> dict[MapKey, Tensor]:
        """An image's maps (C, h, w), by key, as they came. May be called from any thread. Raises `AdapterError` where
        they have not the size of others, and what the source raises."""
        found = self._kept.get(image)
        if found is None:
            found = {key: self._maps.load(image, layer) for key, layer in self._layers.items()}
            for key, own in found.items():
                if self.shapes.setdefault(key, tuple(own.shape)) != tuple(own.shape):
                    raise AdapterError(
                        f"The map of {image}, {spell_keys([key])}, is {tuple(own.shape)}, that of others "
                        f"{self.shapes[key]}: all are learned from together, so resize images to one --size first."
                    )
            if self.in_memory:
                self._kept[image] = found
        return found

    def stack(self, sides: Sequence[Image]) -> dict[MapKey, Tensor]:
        """Maps (b, C, h, w), by key, mirrored where asked."""
        loaded = [(self.load(image), flipped) for image, flipped in sides]
        return {
            key: torch.stack([maps[key].flip(2) if flipped else maps[key] for maps, flipped in loaded])
            for key in self._layers
        }
