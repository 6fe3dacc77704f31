"""What a model's features are worth on the demo's test split: layer 2, layer 2 upsampled, layer 3, both layers.

Run: `python -m benchmarks.demo_model [--model demo|FOLDER]`. Two noise draws at t = 261, text prompt, geometry
half-pixel, nearest neighbour; 95 % intervals by resampling images.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from featstore.backbones.base import Compute
from featstore.backbones.models import open_model
from featstore.backbones.noise import Latents
from featstore.datasets.demo import DemoDataset
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.needed import require_maps
from featstore.pipeline.pairs import images_of, in_resized_frame
from featstore.pipeline.plan import MapRequest
from featstore.pipeline.sources import StoredMaps
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.store import open_store
from matcher.configuration import Geometry, LayerSpec, MatchSettings
from matcher.pairs import MatchingPair
from matcher.pck import distances
from matcher.statistics import Interval, bootstrap_mean
from matcher.sweep import evaluate

TIMESTEP = 261
DRAWS = 2
ALPHAS = (0.05, 0.1, 0.2)
LAYER_2, LAYER_2_UPSAMPLED, LAYER_3, DUAL = "layer 2", "layer 2, 2x bicubic", "layer 3", "layers 2+3, 0.8:0.6"


@dataclass(frozen=True)
class Measured:
    """pairs: of the test split. pck: by configuration and alpha, the PCK of each pair, (n,) fractions."""

    pairs: list[MatchingPair]
    pck: dict[tuple[str, float], NDArray[np.float64]]

    def mean(self, configuration: str, alpha: float) -> Interval:
        """PCK, image average."""
        return bootstrap_mean(self.pairs, self.pck[configuration, alpha], seed=0)

    def difference(self, better: str, worse: str, alpha: float) -> Interval:
        """The paired difference of two configurations."""
        return bootstrap_mean(self.pairs, self.pck[better, alpha] - self.pck[worse, alpha], seed=0)


def measure(model_name: str, folder: Path) -> Measured:
    """Build a store in `folder` and evaluate the four configurations on the CPU."""
    dataset, model = DemoDataset(), open_model(model_name)
    compute = Compute(torch.device("cpu"), torch.float32, 8)
    path = folder / "demo.zarr"
    build(dataset, model, BuildRequest(path, None, None, Latents.SAMPLE, 0, (), 1), compute, False, Silent())
    store = open_store(path)
    test = dataset.pairs("test")
    rows = [store.images.row(image) for image in images_of(test)]
    wanted = [("2", TIMESTEP), ("3", TIMESTEP)]
    made = require_maps(store, dataset, rows, wanted, MapRequest(TextPrompt(), DRAWS, compute), Silent())
    pairs = in_resized_frame(dataset, test, store.images.size, store.header.image_size, Silent())
    plain = MatchSettings(store.header.image_size, Geometry.HALF_PIXEL, 1, Geometry.HALF_PIXEL)
    two, three = LayerSpec("2", TIMESTEP, 0.8), LayerSpec("3", TIMESTEP, 0.6)
    configurations = {
        LAYER_2: ([two], plain),
        LAYER_2_UPSAMPLED: ([two], replace(plain, upsample=2)),
        LAYER_3: ([three], plain),
        DUAL: ([two, three], plain),
    }
    pck = {}
    for name, (layers, settings) in configurations.items():
        maps = StoredMaps(store, made.extractor)
        measured = distances(evaluate(pairs, maps, layers, ["nn"], settings, compute.device), "nn")
        for alpha in ALPHAS:
            pck[name, alpha] = measured.hits(alpha) / measured.counts
    return Measured(pairs, pck)


def main(model: Annotated[str, typer.Option(help="demo or a folder in diffusers' layout.")] = "demo") -> None:
    """Print the table and the paired differences."""
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(model, Path(folder))
    console = Console(width=120)
    table = Table("t = 261, 2 draws", *(f"PCK@{alpha:g}, %" for alpha in ALPHAS))
    for name in (LAYER_2, LAYER_2_UPSAMPLED, LAYER_3, DUAL):
        table.add_row(name, *(_percent(measured.mean(name, alpha)) for alpha in ALPHAS))
    console.print(table)
    differences = Table("paired difference", *(f"@{alpha:g}, points" for alpha in ALPHAS))
    for better, worse in ((DUAL, LAYER_2_UPSAMPLED), (LAYER_2_UPSAMPLED, LAYER_2), (DUAL, LAYER_3)):
        cells = (_percent(measured.difference(better, worse, alpha)) for alpha in ALPHAS)
        differences.add_row(f"{better} - {worse}", *cells)
    console.print(differences)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


if __name__ == "__main__":
    typer.run(main)
