"""What carried keypoints are worth, all of them and those that `dualsd match` says to trust (docs/matching.md).

Each image of a category is annotated in turn, and its keypoints are carried to the category's other images; the table
is over all choices. Run: `python -m benchmarks.transfer --dataset pf-willow --root DIR --features FILE`, or with
`--model` in place of `--features`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from featstore.datasets.pictures import decode, original_size
from featstore.datasets.records import Dataset, to_resized_frame
from featstore.datasets.registry import open_dataset
from featstore.pipeline.match import Featurizer, ImageMaps, match
from featstore.pipeline.sources import open_features
from matcher.configuration import LayerSpec
from matcher.pairs import Pairs
from matcher.statistics import Interval, bootstrap_mean

ALPHAS = (0.05, 0.1)
FEATURES_SIZE = 384
FEATURES_LAYERS = ("s16", "s8")
"""Of `pf-willow-effnet-features.safetensors`."""


@dataclass(frozen=True)
class Carried:
    """pairs: annotated image and another one. Of their points in turn, (N,) each: errors, the distance from the truth
    as a share of theta; margins and mutual, as `Matches` has them."""

    pairs: Pairs
    errors: NDArray[np.float64]
    margins: NDArray[np.float64]
    mutual: NDArray[np.bool_]

    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Which points a row of the table is about."""
        sure = self.margins > np.median(self.margins)
        return {
            "all points": np.ones_like(self.mutual),
            "mutual": self.mutual,
            "not mutual": ~self.mutual,
            "larger half of margins": sure,
            "mutual, larger half of margins": self.mutual & sure,
        }

    def pck(self, chosen: NDArray[np.bool_], alpha: float) -> Interval:
        """Of some of the points, all pooled, with its interval: images resampled."""
        counts, hits = (
            np.add.reduceat(own, self.pairs.starts, dtype=np.int64) for own in (chosen, chosen & (self.errors <= alpha))
        )
        some = np.flatnonzero(counts)
        return bootstrap_mean(self.pairs.take(some), hits[some] / counts[some], seed=0, sizes=counts[some])


def carry(
    dataset: Dataset, size: int, maps_of: Callable[[str], ImageMaps], weights: Sequence[float] | None, geometry: str
) -> Carried:
    """Match the test pairs of a data set. maps_of: by image id, of images resized to `size`, whose pixels count."""
    records = {record.id: record for record in dataset.images()}
    sizes = {name: original_size(record, dataset.read(record)) for name, record in records.items()}
    pairs = to_resized_frame(dataset.pairs("test"), dataset.theta_rule, sizes.__getitem__, size)
    maps = {name: maps_of(name) for name in pairs.images}
    errors, margins, mutual = [], [], []
    for pair in pairs:
        found = match(maps[pair.source], maps[pair.target], pair.source_points, weights, geometry=geometry)
        errors.append(np.linalg.norm(found.points - pair.target_points, axis=1) / pair.theta)
        margins.append(found.margins)
        mutual.append(found.mutual)
    return Carried(pairs, *(np.concatenate(own) for own in (errors, margins, mutual)))


def of_features(dataset: Dataset, file: Path) -> Carried:
    """By the ImageNet features of PF-Willow."""
    features = open_features(file)

    def maps_of(name: str) -> ImageMaps:
        maps = {(layer, None): features.load(name, LayerSpec(layer, None)).float() for layer in FEATURES_LAYERS}
        return ImageMaps(maps, (FEATURES_SIZE, FEATURES_SIZE), FEATURES_SIZE)

    return carry(dataset, FEATURES_SIZE, maps_of, (0.8, 0.6), "half-pixel")


def of_model(dataset: Dataset, model: str, ensemble: int) -> Carried:
    """By a model's maps, with the layers, timesteps and weights that are usual for it."""
    featurizer = Featurizer(model)
    size, records = featurizer.image_size, {record.id: record for record in dataset.images()}

    def maps_of(name: str) -> ImageMaps:
        record = records[name]
        picture = decode(record, dataset.read(record)).resize((size, size))
        return featurizer(picture, f"a photo of a {record.category}", ensemble=ensemble)

    return carry(dataset, size, maps_of, None, "half-pixel")


def main(
    dataset: Annotated[str, typer.Option(help="pf-willow, demo, ...")] = "demo",
    root: Annotated[Path | None, typer.Option(help="Its folder.")] = None,
    features: Annotated[Path | None, typer.Option(help="The ImageNet features of PF-Willow.")] = None,
    model: Annotated[str, typer.Option(help="A model, where no features are named.")] = "demo",
    ensemble: Annotated[int, typer.Option(help="Noise draws.")] = 2,
) -> None:
    """Print the table."""
    opened = open_dataset(dataset, root)
    with torch.inference_mode():
        found = of_model(opened, model, ensemble) if features is None else of_features(opened, features)
    table = Table("points", "share", *(f"PCK@{alpha:g}" for alpha in ALPHAS), title=f"{dataset}, {features or model}")
    for name, chosen in found.kinds().items():
        own = [found.pck(chosen, alpha) for alpha in ALPHAS]
        cells = [f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in own]
        table.add_row(name, f"{100 * chosen.mean():.0f} %", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
