"""Whether decoding, networks and writing run at once: wall clock of making maps against the slowest stage alone.

    python -m benchmarks.overlap [--images 64] [--repeats 3] [--unet 0.053] [--json FILE]

A store without latents gets the maps of layers 2 and 3 of photographs (JPEGs of 500 x 375 pixels, as SPair-71k's), as
`cache maps --layers 2,3 --t 261,261` makes them with 8 draws of noise: real decoding, latents, noise and rows of SD
2-1's shapes in float16. Its networks are stand-ins that sleep as long as a GPU would be busy and let go of the
interpreter: 53 ms per image for the UNet up to layer 3, and for the VAE as much less as it takes fewer operations.
They are one device, so their times add up; the mean over draws is part of them, and a copy to memory costs the CPU
nothing. Each stage is timed alone, then all of them together; the best of the repeats counts. Where others keep the
machine busy, all but the sleeping takes longer: --unet makes the device as much slower.
"""

import json as json_module
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from featstore.backbones.base import Compute, Condition, MapKey, ModelLocation
from featstore.backbones.noise import Latents, LatentScale, NoiseSchedule, noise
from featstore.backbones.stable_diffusion import StableDiffusion
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.pipeline import needed
from featstore.pipeline.build import BuildRequest, open_or_create
from featstore.pipeline.features import pixel_batches
from featstore.pipeline.plan import MapRequest, Work
from featstore.progress import Silent
from featstore.store.keys import Extractor
from featstore.store.rows import row_writer
from featstore.store.store import Store

SIZE, BATCH, DRAWS, TIMESTEP = 768, 8, 8, 261
LATENT = (4, 96, 96)
MAPS: dict[str, tuple[int, int, int]] = {"2": (1280, 48, 48), "3": (640, 96, 96)}
WANTED: list[MapKey] = [(layer, TIMESTEP) for layer in MAPS]
UNET_SECONDS = 0.053
VAE_SHARE = 2.61 / (DRAWS * 1.52)
"""Of the UNet's time, by the operations that each takes (`python -m benchmarks.flops`)."""

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class OnDevice:
    """Maps of one image's draws, all the same, that lie on a device (what the pipeline asks of such a tensor): what is
    done to them there takes no time of the CPU, and no more does their way into memory."""

    device = torch.device("cpu")

    def __init__(self, mean: Tensor) -> None:
        """mean: (C, h, w)."""
        self._arrived = {dtype: mean.to(dtype)[None] for dtype in (torch.float32, torch.float16)}
        self._dtype = torch.float32

    def to(self, dtype: torch.dtype) -> "OnDevice":
        found = copy(self)
        found._dtype = dtype
        return found

    def _stays(self, *_: object, **__: object) -> "OnDevice":
        return self

    __getitem__ = __add__ = __truediv__ = float = unflatten = sum = _stays

    def cpu(self) -> Tensor:
        """(1, C, h, w)."""
        return self._arrived[self._dtype]


class StandIn:
    """Networks that take a GPU's time (`featstore.backbones.diffusion_networks.DiffusionNetworks`). seconds: what the
    UNet takes per image."""

    text = None
    seconds = UNET_SECONDS

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self._latents = torch.randn(LATENT, generator=random)
        self._maps = {layer: OnDevice(torch.randn(shape, generator=random)) for layer, shape in MAPS.items()}

    def encode(self, images: Tensor, posterior_noise: Tensor | None) -> Tensor:
        """Latents (b, 4, h, w)."""
        assert posterior_noise is not None
        time.sleep(VAE_SHARE * self.seconds * len(images))
        return self._latents.expand(len(images), -1, -1, -1)

    def features(
        self, inputs: Tensor, timestep: int | None, condition: Condition | None, layers: Sequence[str]
    ) -> Mapping[str, Any]:
        """Maps (b, C, h, w)."""
        assert condition is not None
        assert (timestep, len(inputs)) == (TIMESTEP, DRAWS)
        time.sleep(self.seconds)
        return {layer: self._maps[layer] for layer in layers}


class StandInModel(StableDiffusion):
    """SD 2-1's shapes, whose networks are stand-ins."""

    def load(self, compute: Compute, layers: Sequence[str] = ("4",)) -> Any:  # noqa: ARG002
        """See `Backbone.load`."""
        return NETWORKS


class Nothing:
    """The prompts of no text encoder (`featstore.prompts.base.Prompts`)."""

    differ_by_layer = False

    def describe(self) -> dict[str, Any]:
        """See `Prompts.describe`."""
        return {"kind": "text", "template": ""}

    def embeddings(self, layer: int, categories: Collection[str], text: object) -> dict[str, Condition]:
        """See `Prompts.embeddings`."""
        assert (str(layer) in MAPS, text) == (True, None)
        return dict.fromkeys(categories, Condition(torch.zeros(1, 77, 1024)))


NETWORKS = StandIn()
MODEL = StandInModel(
    location=ModelLocation("stand-in", None, Path()),
    fingerprint="0" * 32,
    image_size=SIZE,
    latent_factor=8,
    latent_channels=LATENT[0],
    latent_scale=LatentScale(0.0, 0.18215),
    unet_config={"block_out_channels": [320, 640, 1280, 1280]},
    schedule=NoiseSchedule.parse(SCHEDULE, "the benchmark"),
)
# what a GPU does with pictures and noise, it does without the CPU: tensors there have no memory and cost nothing
COMPUTE = Compute(torch.device("meta"), torch.float16, BATCH)


def write_photographs(folder: Path, count: int) -> None:
    """Pictures of large and small detail, about as large as photographs of that size."""
    random = np.random.default_rng(0)
    (folder / "cat").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        detailed = np.asarray(coarse, dtype=np.int16) + random.integers(-12, 13, (375, 500, 3))
        Image.fromarray(detailed.clip(0, 255).astype(np.uint8)).save(folder / "cat" / f"{number:03d}.jpg", quality=90)


@dataclass(frozen=True, slots=True)
class Stages:
    """Each stage alone, on a store of its own."""

    store: Store
    dataset: Dataset

    @property
    def rows(self) -> range:
        return range(len(self.store.images))

    def decode(self) -> None:
        """Images read, decoded and resized."""
        work = Work(self.store, self.dataset, COMPUTE, Silent())
        assert sum(1 for _ in pixel_batches(work, self.rows, SIZE, [])) == len(self.rows) // BATCH

    def derive(self) -> None:
        """Noisy latents of all draws, in one thread."""
        clean = np.ones(LATENT, dtype=np.float32)
        for key in self.store.images.keys:
            for draw in range(DRAWS):
                MODEL.schedule.mix(clean, noise(0, key, TIMESTEP, draw, LATENT), TIMESTEP).astype(np.float16)

    def compute(self) -> None:
        """The device: both networks."""
        pictures, latents = torch.zeros(BATCH, 3, SIZE, SIZE), torch.zeros(DRAWS, *LATENT)
        for _ in range(len(self.rows) // BATCH):
            NETWORKS.encode(pictures, latents)
        for _ in self.rows:
            NETWORKS.features(latents, TIMESTEP, Condition(latents), [*MAPS])

    def write(self) -> None:
        """Rows of both layers, as the pipeline hands them over: encoded, and on the disk as whole files."""
        extractor = Extractor("0" * 32, {"kind": "text", "template": ""}, DRAWS, "float16", 0)
        maps = {layer: np.ones(shape, dtype=np.float16) for layer, shape in MAPS.items()}
        arrays = {layer: self.store.require_maps(extractor, layer, 999, shape) for layer, shape in MAPS.items()}
        with row_writer() as write:
            for row in self.rows:
                for layer, values in maps.items():
                    write(arrays[layer], (row,), values)

    def all_at_once(self) -> None:
        """What a user calls."""
        needed.require_maps(
            self.store, self.dataset, self.rows, WANTED, MapRequest(Nothing(), DRAWS, COMPUTE), Silent()
        )


def seconds_of(stage: Callable[[Stages], None], photographs: Path) -> float:
    """Wall time of a stage, on a store without latents."""
    dataset = open_dataset("folder", photographs)
    with tempfile.TemporaryDirectory(dir=photographs.parent) as folder:
        request = BuildRequest(Path(folder) / "own.zarr", photographs, None, Latents.SAMPLE, 0, (), 1)
        store, _ = open_or_create(dataset, MODEL, request, Silent())
        started = time.perf_counter()
        stage(Stages(store, dataset))
        return time.perf_counter() - started


def main(
    images: Annotated[int, typer.Option(help="Photographs; a multiple of 8.")] = 64,
    repeats: Annotated[int, typer.Option(help="Of each measurement, in turn.")] = 3,
    unet: Annotated[float, typer.Option(help="Seconds that the UNet takes per image.")] = UNET_SECONDS,
    json: Annotated[Path | None, typer.Option(help="Write the seconds to FILE.", metavar="FILE")] = None,
) -> None:
    """Time all stages, and all at once."""
    torch.set_num_threads(1)  # there is no work here that a CPU's cores should share
    NETWORKS.seconds = unet
    stages = {
        "decode and resize": Stages.decode,
        "noise, 8 draws": Stages.derive,
        "device: VAE and UNet": Stages.compute,
        "encode and write rows": Stages.write,
        "all at once": Stages.all_at_once,
    }
    taken: dict[str, list[float]] = {name: [] for name in stages}
    # the store names its model, which lies nowhere
    with tempfile.TemporaryDirectory() as folder, patch.object(needed, "open_model", lambda *_: MODEL):
        photographs = Path(folder) / "photographs"
        write_photographs(photographs, images)
        for _ in range(repeats):
            for name, stage in stages.items():
                taken[name].append(seconds_of(stage, photographs))
    best = {name: min(seconds) for name, seconds in taken.items()}
    together = best.pop("all at once")
    slowest = max(best, key=best.__getitem__)
    for name, seconds in best.items():
        typer.echo(f"{name:26} {1000 * seconds / images:7.1f} ms per image")
    typer.echo(f"{'one after the other':26} {1000 * sum(best.values()) / images:7.1f} ms per image")
    typer.echo(
        f"{'all at once':26} {1000 * together / images:7.1f} ms per image, {together / best[slowest]:.2f} of the "
        f"slowest ({slowest}); load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    if json is not None:
        json.write_text(json_module.dumps({"images": images, "load": os.getloadavg(), **taken}))


if __name__ == "__main__":
    typer.run(main)
