"""What a GPU makes of build, maps, a training step and matching, and of the published way (`benchmarks.published`), in
one run: images or pairs per second, the share of the time in which the device computes, and peak memory.

Run: `python -m benchmarks.gpu [--images 48] [--steps 6] [--seconds 10] [--json FILE]`. On CUDA that is SD 2-1's full
configuration with random weights, in half precision; elsewhere it is the demo's model, which shows only that it runs.

dualsd is measured through its public functions, on the demo's pictures at the model's size: reading, resizing and
writing count. The published way has its pictures and maps in the device's memory already, and draws its noise there.
Either is measured once it is warm; torch's profiler records kernels meanwhile, and copies are no computation.

A machine whose pip has no network needs wheels of what it lacks, made for its Python and platform elsewhere:
`pip download --no-deps -d wheels diffusers zarr numcodecs donfig google-crc32c pydantic pydantic_core typing-inspection
importlib_metadata`; there `pip install --no-index --no-deps --target site wheels/*` and, from the repository's root,
`PYTHONPATH=site python -m benchmarks.gpu`. Nothing is downloaded.
"""

import gc
import json as json_module
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import getitem
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

import dualsd
from benchmarks import published
from benchmarks.flops import BATCH, SETTINGS, TEXT_ENCODER, UNET, VAE, prompt_sets, some_pairs
from benchmarks.published import PublishedModel, WholeUNet
from featstore.backbones.base import Compute, compute_on
from featstore.backbones.models import open_model
from featstore.backbones.noise import noise, posterior_noise
from featstore.datasets.demo import DemoDataset
from featstore.datasets.pictures import decode
from featstore.pipeline.photos import as_photo
from featstore.progress import Silent
from featstore.prompts.base import PromptSet
from featstore.tuning.loss import default_kernel, keypoint_losses
from featstore.tuning.settings import TuningSettings
from featstore.tuning.step import Learner, Networks, batch_loss
from matcher.configuration import LayerSpec, MatchSettings
from matcher.maps import MapsInMemory
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate as match_pairs

LAYERS, TIMESTEPS, WEIGHTS = ("2", "3"), (261, 200), (0.8, 0.6)
DRAWS = 8
CATEGORY = "bird"
"""Of the demo, whose pairs are matched."""
TEMPLATE = "a photo of a {category}"
PROMPT = TEMPLATE.format(category=CATEGORY)
PARTS = 3
"""In which a training batch is taken: all of it at once would fill a GPU of 80 GB."""
SPAIR_IMAGES = 27
"""Of a category of SPair-71k's test split, in which nearly all ordered pairs are evaluated."""
WORK = ("build: VAE, latents kept", f"maps of layers 2 and 3, {DRAWS} draws each", "matching by nn")
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Measured:
    """rate: units per second. busy: share of the time in which the device computes; None where that is not measured.
    peak: bytes of the device's memory, on a CPU of the process since it began."""

    rate: float
    busy: float | None
    peak: int


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. unit: what is counted."""

    what: str
    unit: str
    dualsd: Measured
    published: Measured


class Window:
    """A stretch of time in which a device is watched; its peak of memory counts from the making on."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._is_cuda = device, device.type == "cuda"
        gc.collect()  # what nobody needs any more
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def open(self) -> None:
        """Begin."""
        if self._is_cuda:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.start()
            torch.cuda.synchronize(self._device)
        self._started = time.perf_counter()

    def close(self, units: float) -> Measured:
        """End, with so many units done."""
        if not self._is_cuda:
            seconds = time.perf_counter() - self._started
            return Measured(units / seconds, None, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - self._started
        self._profile.stop()
        kernels = (
            (event.time_range.start, event.time_range.end)
            for event in self._profile.events() or ()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        )
        busy = covered(kernels) / (1e6 * seconds)
        return Measured(units / seconds, busy, torch.cuda.max_memory_allocated(self._device))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of a line spans (start, end) cover, each place once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


class Clock(Silent):
    """Watches one step of a public function, from its first advance, when all is loaded and warm, to its last.

    Args:
        what: Begins the step's name.
        device: Which computes.
        per_unit: Of the step's units, in one that is counted.
        left_out: Units at the end that are not counted.
    """

    def __init__(self, what: str, device: torch.device, per_unit: int = 1, left_out: int = 0) -> None:
        self._what, self._per_unit, self._left_out = what, per_unit, left_out
        self._window, self._measured = Window(device), list[Measured]()
        self._done = self._first = self._until = 0

    def start(self, what: str, total: int, unit: str) -> None:  # noqa: ARG002
        """See `featstore.progress.Progress.start`."""
        self._done = self._first = 0
        self._until = total - self._left_out if what.startswith(self._what) else 0

    def advance(self, count: int = 1) -> None:
        """See `featstore.progress.Progress.advance`."""
        self._done += count
        if self._until and not self._first:
            self._first = self._done
            self._window.open()
        elif self._until and self._done >= self._until:
            self._measured.append(self._window.close((self._done - self._first) / self._per_unit))
            self._until = 0

    def measured(self) -> Measured:
        """What was seen. Fails where there was no such step, or it was done in one advance."""
        assert self._measured, f"no step {self._what!r} of more than one batch was seen: take more images or steps"
        return self._measured[-1]


def repeated(work: Callable[[], object], units: int, device: torch.device, least: float) -> Measured:
    """A piece of the published way over and over, for `least` seconds, after once to warm up. units: of each time."""
    window, times = Window(device), 0
    work()
    window.open()
    started = time.perf_counter()
    while time.perf_counter() - started < least:
        work()
        times += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return window.close(units * times)


def write_full_model(folder: Path, device: torch.device) -> None:
    """SD 2-1's full configuration with random weights in half precision; the tokenizer knows a few hundred tokens."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tools.demo_model.small_model import small_dino, write_components, write_tokenizer

    write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    with device:
        networks: dict[str, Any] = {
            "vae": AutoencoderKL(**VAE),
            "unet": UNet2DConditionModel(**UNET),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
            "dino": small_dino(),
        }
    write_components(folder, **networks, dtype=torch.float16)


def pictures(count: int) -> list[Image.Image]:
    """The first of the demo's category."""
    dataset = DemoDataset()
    records = [record for record in dataset.images() if record.category == CATEGORY][:count]
    return [decode(record, dataset.read(record)) for record in records]


def pixels_of(photographs: Sequence[Image.Image], side: int, device: torch.device) -> Tensor:
    """As the VAE takes them, (b, 3, side, side) in [-1, 1]."""
    resized = [np.asarray(own.resize((side, side), Image.Resampling.BILINEAR)) for own in photographs]
    return torch.from_numpy(np.stack(resized)).to(device).permute(0, 3, 1, 2) / 127.5 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What is measured, and where.

    Args:
        model: A folder in diffusers' layout.
        side: Of its images, pixels.
        latents: Their shape, (c, h, w).
        compute: Of build, maps and matching.
        training: Of training.
        folder: For stores and runs.
        seconds: For each piece of the published way.
    """

    model: Path
    side: int
    latents: tuple[int, int, int]
    compute: Compute
    training: Compute
    folder: Path
    seconds: float

    @property
    def device(self) -> torch.device:
        """Which computes."""
        return self.compute.device

    @property
    def store(self) -> str:
        """Where dualsd keeps what it makes."""
        return str(self.folder / "store.zarr")

    def draw(self, count: int) -> Tensor:
        """Standard normal noise (count, c, h, w) on the device."""
        return torch.randn(count, *self.latents, device=self.device)


def check_maps(bench: Bench) -> str:
    """Hold maps and matches of two pictures against the published way's, from the same noise; what was found."""
    photographs, device = pictures(2), bench.device
    model = PublishedModel.load(bench.model, device, bench.compute.dtype)
    featurizer = dualsd.Featurizer(str(bench.model), device=str(device), dtype=bench.compute.dtype_name)
    keys = tuple(zip(LAYERS, TIMESTEPS, strict=True))
    ours, worst = dict[tuple[str, str, int | None], Tensor](), 0.0
    for name, photograph in zip("ab", photographs, strict=True):
        made = featurizer(photograph, PROMPT, LAYERS, TIMESTEPS, DRAWS)
        key, pixels = as_photo(photograph).key, pixels_of([photograph], bench.side, device)

        def drawn(array: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(array).to(device)

        latents = model.latents(pixels, drawn(posterior_noise(0, key, bench.latents)))
        for layer, timestep in keys:
            draws = drawn(np.stack([noise(0, key, timestep, draw, bench.latents) for draw in range(DRAWS)]))
            theirs = model.map(latents, draws, timestep, model.prompt(PROMPT), int(layer))
            own = made.maps[layer, timestep].to(device)
            worst = max(worst, float((own - theirs).norm() / theirs.norm()))
            ours[name, layer, timestep] = own
    limit = 1e-4 if bench.compute.dtype is torch.float32 else 1e-2
    assert worst <= limit, f"maps differ by {worst:.2g} of their norm, more than {limit:g}"
    (pair,) = some_pairs(1, bench.side)
    pair = replace(pair, source="a", target="b")
    specs = [LayerSpec(*key, weight) for key, weight in zip(keys, WEIGHTS, strict=True)]
    found = match_pairs([pair], MapsInMemory(ours), specs, ["nn"], MatchSettings(bench.side), device)
    sources, targets = ([ours[name, *key] for key in keys] for name in "ab")
    points = torch.from_numpy(pair.source_points).to(device)
    places = published.match(sources, targets, WEIGHTS, points, bench.side).cpu().numpy()
    away = np.abs(found.predictions["nn"] - places).max()
    assert away < 0.5, f"matches differ by {away:.1f} pixels"
    return f"maps differ by at most {worst:.1g} of their norm, {len(places)} of {len(places)} matches are the same"


@dataclass(frozen=True, slots=True, eq=False)
class PublishedTraining:
    """A training step's loss in the published way: both images of each pair through the VAE and the whole UNet, a fused
    map of each. Prompts, and the loss of correlations, are dualsd's own.

    Args:
        model: In the precision of training.
        networks: Of whole UNets.
        prompts: One set per layer.
        settings: As dualsd's.
        pairs: Of a part of a batch, p.
        pixels: Of their sources, then of their targets, (2 p, 3, S, S).
    """

    model: PublishedModel
    networks: Networks
    prompts: Sequence[PromptSet]
    settings: TuningSettings
    pairs: Sequence[MatchingPair]
    pixels: Tensor

    def noisy(self, bench: "Bench") -> list[Tensor]:
        """Noisy latents (2 p, c, h, w) per layer."""
        latents = self.model.latents(self.pixels, bench.draw(len(self.pixels)))
        return [self.model.noisy(latents, bench.draw(len(latents)), step) for step in self.settings.timesteps]

    def loss(self, noisy: Sequence[Tensor]) -> Tensor:
        """The mean over the pairs."""
        settings, maps, pairs = self.settings, list[Tensor](), self.pairs
        side = settings.matching.image_size
        for layer, (latents, timestep) in enumerate(zip(noisy, settings.timesteps, strict=True)):
            vectors, which = self.prompts[layer].vectors(pairs)
            told = self.networks.condition(vectors).each(getitem, [*which, *which])
            maps.append(self.networks.tap(layer, latents, timestep, told).float())
        losses = []
        for place, pair in enumerate(pairs):
            source, target = (
                published.fuse([own[end] for own in maps], settings.weights) for end in (place, len(pairs) + place)
            )
            starts, ends = (
                published.to_cells(torch.from_numpy(points).to(target), side, target.shape[-1])
                for points in (pair.source_points, pair.target_points)
            )
            rows = published.correlate(source, starts, target)
            losses.append(keypoint_losses(rows, ends, settings.kernel, settings.matching.beta).mean())
        return torch.stack(losses).mean()


def published_training(bench: Bench) -> tuple[PublishedTraining, str]:
    """The published way's training, once its loss was held against dualsd's from the same noise; what was found."""
    compute, device = bench.training, bench.device
    opened = open_model(str(bench.model))
    loaded = opened.load(compute, LAYERS)
    framed = loaded.text.frame(SETTINGS.length)
    settings = replace(
        SETTINGS,
        kernel=default_kernel(opened.shape(3, bench.side).side),
        matching=MatchSettings(bench.side),
        dtype=compute.dtype_name,
    )
    count = BATCH // PARTS
    pairs, pixels = some_pairs(count, bench.side), pixels_of(pictures(2 * count), bench.side, device)
    cut = Networks(loaded.text, framed, [loaded.unet.until(layer) for layer in settings.layers], compute)
    prompts = prompt_sets(settings, pairs, cut)
    model = PublishedModel.load(bench.model, device, compute.dtype)
    whole = replace(cut, unets=[WholeUNet(model.unet, layer) for layer in settings.layers])
    theirs = PublishedTraining(model, whole, prompts, settings, pairs, pixels)
    noisy = theirs.noisy(bench)
    names = [*(pair.source for pair in pairs), *(pair.target for pair in pairs)]

    def load(image: str, timestep: int, step: int) -> NDArray[np.float32]:  # noqa: ARG001
        return noisy[settings.timesteps.index(timestep)][names.index(image)].cpu().numpy()

    with torch.no_grad():
        ours, _ = batch_loss(Learner(settings, cut, prompts, load), pairs, count, 0)
        losses = [float(ours), float(theirs.loss(noisy))]
    limit = 1e-4 if compute.dtype is torch.float32 else 2e-2
    assert abs(losses[0] - losses[1]) <= limit * losses[1], f"losses differ: {losses[0]:.6g} and {losses[1]:.6g}"
    return theirs, f"losses of a step are {losses[0]:.5g} and {losses[1]:.5g}"


def measure_published_training(bench: Bench) -> tuple[Measured, str]:
    """Pairs of steps with Adam, and the check."""
    theirs, said = published_training(bench)
    adam = torch.optim.Adam([own for one in theirs.prompts for own in one.parameters()], lr=theirs.settings.rate)

    def step() -> None:
        adam.zero_grad()
        for _ in range(PARTS):
            (theirs.loss(theirs.noisy(bench)) / PARTS).backward()
        adam.step()

    return repeated(step, BATCH, bench.device, bench.seconds), said


def measure_training(bench: Bench, steps: int) -> Measured:
    """Pairs of steps of class prompts, by `train`, on a store that has its latents and noise."""
    clock, count = Clock("training", bench.device, left_out=1), steps + 2  # the first warms up, the last validates
    asked = dualsd.TrainConfig(
        mode="class",
        store=bench.store,
        device=str(bench.device),
        steps=count,
        batch=BATCH,
        accumulate=PARTS,
        draws=1,
        validate_every=count,
        validation_pairs=1,
        runs=bench.folder / "runs",
    )
    dualsd.train(asked, clock)
    found = clock.measured()
    return replace(found, rate=BATCH * found.rate)


def measure_dualsd(bench: Bench, images: int) -> list[Measured]:
    """Build and maps of about so many images, and matching of the maps in the store."""
    device, part = bench.device, f"1/{max(len(DemoDataset().images()) // images, 1)}"
    shared: dict[str, Any] = {"store": bench.store, "device": str(device), "dtype": bench.compute.dtype_name}
    asked: dict[str, Any] = {"layers": LAYERS, "timesteps": TIMESTEPS, "prompt": TEMPLATE, "ensemble": DRAWS, **shared}
    build = Clock("encoding images", device)
    dualsd.build(dualsd.BuildConfig(dataset="demo", model=str(bench.model), part=part, **shared), build)
    maps = Clock("UNet passes", device, per_unit=DRAWS * len(LAYERS))
    dualsd.make_maps(dualsd.MapsConfig(part=part, **asked), maps)
    matching = Clock("matching", device)
    dualsd.evaluate(dualsd.EvalConfig(categories=(CATEGORY,), readouts=("nn",), weights=WEIGHTS, **asked), matching)
    return [clock.measured() for clock in (build, maps, matching)]


def measure_published(bench: Bench) -> list[Measured]:
    """The VAE, the whole UNet, and matching of two images' maps."""
    device, model = bench.device, PublishedModel.load(bench.model, bench.device, bench.compute.dtype)
    pixels, told = pixels_of(pictures(2), bench.side, device), model.prompt(PROMPT)
    latents = model.latents(pixels, bench.draw(2))

    def maps(own: Tensor) -> list[Tensor]:
        keys = zip(LAYERS, TIMESTEPS, strict=True)
        return [model.map(own[None], bench.draw(DRAWS), step, told, int(layer)) for layer, step in keys]

    source, target = (maps(own) for own in latents)
    points = torch.from_numpy(some_pairs(1, bench.side)[0].source_points).to(device)
    pieces: list[tuple[Callable[[], object], int]] = [
        (lambda: model.latents(pixels, bench.draw(2)), 2),
        (lambda: maps(latents[0]), 1),
        (lambda: published.match(source, target, WEIGHTS, points, bench.side).cpu(), 1),
    ]
    return [repeated(work, units, device, bench.seconds) for work, units in pieces]


def pairs_per_second(build: Row, maps: Row, matching: Row) -> tuple[float, float]:
    """What the rates make of all pairs of a category of SPair-71k's test split. dualsd makes the maps of each image
    once, the published way those of both images of each pair."""
    count = SPAIR_IMAGES * (SPAIR_IMAGES - 1)
    once = SPAIR_IMAGES * (1 / build.dualsd.rate + 1 / maps.dualsd.rate) + count / matching.dualsd.rate
    each = 2 / build.published.rate + 2 / maps.published.rate + 1 / matching.published.rate
    return count / once, 1 / each


def print_table(console: Console, rows: Sequence[Row], whole: tuple[float, float]) -> None:
    """One table."""
    columns = [f"{what}\n{way}" for what in ("", "computing", "peak, MB") for way in ("dualsd", "published")]
    table = Table("", "per second", *columns[:2], "times", *columns[2:])
    for row in rows:
        pair = row.dualsd, row.published
        rates = [f"{own.rate:.3g}" for own in pair]
        shares = ["not measured" if own.busy is None else f"{100 * own.busy:.0f} %" for own in pair]
        peaks = [f"{own.peak / MEGABYTE:,.0f}" for own in pair]
        table.add_row(row.what, row.unit, *rates, f"{pair[0].rate / pair[1].rate:.2f}", *shares, *peaks)
    what = f"so: all pairs of {SPAIR_IMAGES} images"
    table.add_row(what, "pairs", *(f"{rate:.3g}" for rate in whole), f"{whole[0] / whole[1]:.1f}")
    console.print(table)


def main(
    images: Annotated[int, typer.Option(min=2, help="Images that dualsd builds and makes maps of, about.")] = 48,
    steps: Annotated[int, typer.Option(min=1, help="Training steps that are timed.")] = 6,
    seconds: Annotated[float, typer.Option(help="For each piece of the published way.")] = 10,
    json: Annotated[Path | None, typer.Option(help="Write the figures to FILE.", metavar="FILE")] = None,
) -> None:
    """Check that both ways give the same, measure both, and print a table."""
    disable_progress_bar()
    console, is_cuda = Console(width=140), torch.cuda.is_available()
    device = torch.device("cuda" if is_cuda else "cpu")
    half = "bfloat16" if is_cuda and torch.cuda.is_bf16_supported() else "float16"
    compute, training = (compute_on(str(device), dtype if is_cuda else "float32") for dtype in ("float16", half))
    name = torch.cuda.get_device_name(device) if is_cuda else "CPU"
    with tempfile.TemporaryDirectory() as folder:
        if is_cuda:
            console.print(f"{name}, torch {torch.__version__}: SD 2-1's full configuration, random weights")
            model = Path(folder) / "model"
            write_full_model(model, device)
        else:
            console.print("No GPU here: small sizes (the demo's model) on the CPU, which show only that it runs.")
            model = open_model("demo").location.folder
        opened = open_model(str(model))
        side = opened.image_size
        bench = Bench(model, side, opened.latent_shape(side), compute, training, Path(folder), seconds)
        console.print(f"{side} pixels, {compute.dtype_name}, training {training.dtype_name}, {DRAWS} noise draws")
        said = check_maps(bench)
        console.print(f"Both ways agree: {said}.")
        # one way after the other, so that neither holds memory while the other is measured
        ours, theirs = measure_dualsd(bench, images), measure_published(bench)
        published_steps, losses = measure_published_training(bench)
        console.print(f"They agree in training: {losses}.")
        trained = Row(f"training, {BATCH} pairs per step", "pairs", measure_training(bench, steps), published_steps)
    rows = [Row(*line) for line in zip(WORK, ("images", "images", "pairs"), ours, theirs, strict=True)]
    whole = pairs_per_second(*rows)
    rows.insert(2, trained)
    print_table(console, rows, whole)
    console.print("Peak memory is the device's." if is_cuda else "Peak memory is the process's, since it began.")
    if json is not None:
        figures = {"device": name, "torch": torch.__version__, "pixels": side, "checks": [said, losses]}
        written = {**figures, "rows": [asdict(row) for row in rows], "all_pairs": whole}
        json.write_text(json_module.dumps(written, indent=2), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
