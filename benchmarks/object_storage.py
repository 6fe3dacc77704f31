"""What reading ahead gains where a store is on object storage.

    python -m benchmarks.object_storage --latency 0.02

A store of random maps (24 images, as layer 2 of SD 2-1 at half its channels) lies on moto's S3 server behind a link of
so many seconds a request. All pairs are matched with the maps read one at a time as they are needed, and read ahead of
the matching as far as `eval` and `grid` do; each is timed three times in turn, and ratios of the medians are printed.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from featstore.backbones.noise import Latents
from featstore.pipeline.sources import StoredMaps
from featstore.store.images import ImageTable
from featstore.store.keys import Extractor, StoreLocation, parse_location
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, create_store
from matcher.configuration import LayerSpec, MatchSettings
from matcher.maps import MapSource
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate
from tests.faulty_proxy import Faults, FaultyProxy
from tests.s3_server import make_bucket, python_with_moto, running

IMAGES, MAP, SIZE = 24, (640, 48, 48), 768
HEADER = StoreHeader("folder", None, "none", None, "00" * 16, SIZE, Latents.SAMPLE, {}, 0)
EXTRACTOR = Extractor("00" * 16, {"kind": "text", "template": ""}, 1, "float32", 0)
LAYER = LayerSpec("2", 261)


@dataclass(frozen=True)
class AheadBy:
    """Maps that are read a fixed number of images ahead (a `matcher.maps.FarMapSource`)."""

    maps: MapSource
    images: int

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        return self.maps.load(image, layer)

    def images_ahead(self, layers: Sequence[LayerSpec]) -> int:  # noqa: ARG002
        return self.images


def write_store(place: StoreLocation) -> Store:
    """A store whose maps are all there."""
    ids = tuple(f"cat/{index}" for index in range(IMAGES))
    table = ImageTable(ids, ("cat",) * IMAGES, ids, np.full((IMAGES, 2), SIZE, dtype=np.int32))
    store = create_store(place, HEADER, table, (4, 96, 96))
    array = store.require_maps(EXTRACTOR, 2, 261, MAP)
    random = np.random.default_rng(0)
    for row in range(IMAGES):
        array.write((row,), random.normal(size=MAP).astype(np.float16))
    return store


def seconds_of(maps: MapSource, pairs: Sequence[MatchingPair]) -> float:
    """Wall time of matching all pairs."""
    started = time.monotonic()
    evaluate(pairs, maps, [LAYER], ["nn"], MatchSettings(SIZE), torch.device("cpu"))
    return time.monotonic() - started


def main() -> None:
    """Time all ways, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    latency = parser.parse_args().latency
    python = python_with_moto()
    assert python is not None, "install the S3 server first: make test"
    with running(python) as port, tempfile.TemporaryDirectory() as folder:
        link = FaultyProxy(port)
        os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": link.url}
        make_bucket(port, "benchmark")
        far = write_store(parse_location("s3://benchmark/own.zarr"))
        local = write_store(Path(folder) / "own.zarr")
        link.faults = Faults(latency=latency)
        points = np.random.default_rng(1).uniform(0, SIZE - 1, (10, 2)).astype(np.float32)
        ids = far.images.ids
        pairs = [MatchingPair(a, b, "cat", points, points, 300.0) for a, b in permutations(ids, 2)]
        maps = StoredMaps(far, EXTRACTOR)
        how: dict[str, MapSource] = {
            "as they are needed": AheadBy(maps, 0),
            "2 images ahead": AheadBy(maps, 2),
            f"{maps.images_ahead([LAYER])} images ahead (eval's)": maps,
            "local disk": StoredMaps(local, EXTRACTOR),
        }
        taken: dict[str, list[float]] = {name: [] for name in how}
        for _ in range(3):
            for name, source in how.items():
                taken[name].append(seconds_of(source, pairs))
        plain = median(taken["as they are needed"])
        for name, seconds in taken.items():
            print(f"{name:32} {median(seconds):6.2f} s   {median(seconds) / plain:5.2f} of reading as needed")
        link.close()


if __name__ == "__main__":
    main()
