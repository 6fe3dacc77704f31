"""Maps and pairs of SD 2-1's shapes without a model: what `benchmarks.grid` measures on."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featstore.backbones.noise import Latents
from featstore.pipeline.sources import StoredMaps
from featstore.store.images import ImageTable
from featstore.store.keys import Extractor
from featstore.store.rows import RAW, Encoding
from featstore.store.schema import StoreHeader
from featstore.store.store import create_store
from matcher.configuration import LayerSpec
from matcher.pairs import MatchingPair

IMAGE_SIZE = 768
SHAPES = {"2": (1280, 48, 48), "3": (640, 96, 96)}
"""Layers of SD 2-1 at 768 x 768."""

POINTS = 8
EXTRACTOR = Extractor("synthetic", {"kind": "text", "template": "synthetic"}, 1, "float32", 0)


def smooth_map(shape: tuple[int, int, int], seed: int) -> Tensor:
    """A map (C, h, w), float16, whose neighbouring cells resemble each other, as real ones do."""
    chance = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    rough = torch.randn(1, channels, height // 4, width // 4, generator=chance)
    smooth = functional.interpolate(rough, (height, width), mode="bilinear")[0]
    return (3 * smooth + torch.randn(shape, generator=chance)).half()


@dataclass(frozen=True, slots=True)
class FewMaps:
    """A source of maps in memory that hands out the maps of few images under many names: memory holds no more."""

    maps: tuple[dict[LayerSpec, Tensor], ...]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `matcher.maps.MapSource`."""
        return self.maps[number_of(image) % len(self.maps)][layer.map]


def few_maps(images: int, timesteps: dict[str, tuple[int, ...]]) -> FewMaps:
    """Of `images` different images, at each layer's timesteps."""
    specs = [LayerSpec(layer, step) for layer, steps in timesteps.items() for step in steps]
    return FewMaps(
        tuple(
            {spec: smooth_map(SHAPES[spec.layer], 1000 * image + index) for index, spec in enumerate(specs)}
            for image in range(images)
        )
    )


def image_name(category: int, number: int) -> str:
    """`c03/i0085`: the number counts over all categories."""
    return f"c{category:02d}/i{number:04d}"


def number_of(image: str) -> int:
    """The number in an image's name."""
    return int(image.rpartition("/i")[2])


def all_pairs(categories: int, images: int, sources: int) -> list[MatchingPair]:
    """In each category all ordered pairs of its images, or so many that each target has `sources`; an image's 8
    keypoints are the same in all its pairs."""
    chance = np.random.default_rng(0)
    found = []
    for category in range(categories):
        names = [image_name(category, category * images + index) for index in range(images)]
        points = {name: chance.uniform(0, IMAGE_SIZE - 1, (POINTS, 2)).astype(np.float32) for name in names}
        count = dict.fromkeys(names, 0)
        for source, target in itertools.permutations(names, 2):
            if count[target] < sources:
                count[target] += 1
                name = f"c{category:02d}"
                found.append(MatchingPair(source, target, name, points[source], points[target], IMAGE_SIZE / 2))
    return found


def write_store(
    path: Path, categories: int, images: int, timesteps: dict[str, int], encoding: Encoding = RAW
) -> StoredMaps:
    """A store with the maps of `categories` x `images` images at a timestep a layer. Every image has its own map: one
    of a few, rolled along its channels."""
    extractor = replace(EXTRACTOR, encoding=encoding.name)
    names = [image_name(number // images, number) for number in range(categories * images)]
    table = ImageTable(
        tuple(names),
        tuple(name.partition("/")[0] for name in names),
        tuple(names),
        np.full((len(names), 2), IMAGE_SIZE, dtype=np.int32),
    )
    header = StoreHeader("synthetic", None, "synthetic", None, "synthetic", IMAGE_SIZE, Latents.SAMPLE, {}, 0)
    store = create_store(path, header, table, (4, 96, 96))
    for layer, timestep in timesteps.items():
        array = store.require_maps(extractor, int(layer), timestep, SHAPES[layer])
        bases = [smooth_map(SHAPES[layer], seed).numpy() for seed in range(4)]
        for row in range(len(names)):
            array.write((row,), np.roll(bases[row % len(bases)], row, axis=0))
    return StoredMaps(store, extractor)


def open_maps(path: Path, encoding: Encoding = RAW) -> StoredMaps:
    """The maps of a store that `write_store` made."""
    from featstore.store.store import open_store

    return StoredMaps(open_store(path), replace(EXTRACTOR, encoding=encoding.name))
