"""Peak memory of `dualsd cache build` and `dualsd eval`, by numbers of images and pairs: it must not grow with them.

Run: `python -m benchmarks.memory [--images 1000,10000] [--pairs 870,90000] [--json FILE]`. Images of 32x32 pixels are
drawn on the fly, in 20 categories, 4 keypoints per pair; the model is small, with random weights. Without `--pairs`
there are as many pairs as images; with it each number of pairs is evaluated on each number of images. With `--rows 5`
stores of so many rows per image are looked at instead: `cache info`, `cache build` with nothing to do, and its
`--dry-run`. Each command runs in a process of its own, forked after the libraries were loaded, and says its own peak
(`ru_maxrss`).
"""

import contextlib
import json as json_module
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from cli.main import app
from featstore.datasets import registry
from featstore.datasets.pictures import image_key
from featstore.datasets.records import AnnotatedPairs, Dataset, ImageRecord, Pair, ThetaRule
from featstore.pipeline.plan import noisy_latent
from featstore.store.images import ImageTable
from featstore.store.store import create_store, open_store
from tools.demo_model.small_model import write_small_model

SIDE = 32
CATEGORIES = 20
POINTS = 4
MEGABYTE = 1_000_000

BUILD = ("cache", "build", "--size", str(SIDE), "--t", "261", "--batch-size", "64", "--device", "cpu")
EVAL = ("eval", "--layers", "1", "--t", "261", "--ensemble", "1", "--batch-size", "64", "--device", "cpu")


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes of memory at most, resident. images, pairs: how many there were."""

    images: int
    pairs: int
    build: int
    eval: int


@dataclass(frozen=True, slots=True)
class DrawnImages:
    """A dataset of `count` images that are a function of their number, and `pair_count` pairs. See
    `featstore.datasets.records.Dataset`."""

    count: int
    pair_count: int

    @property
    def name(self) -> str:
        return "demo"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("test",)

    @property
    def theta_rule(self) -> ThetaRule:
        return ThetaRule.IMAGE

    def images(self) -> tuple[ImageRecord, ...]:
        numbers = [(number % CATEGORIES, number) for number in range(self.count)]
        return tuple(ImageRecord(_id(number), f"c{own:02d}", str(number)) for own, number in sorted(numbers))

    def pairs(self, split: str) -> AnnotatedPairs:
        """Each image with the next one of its category, the last with the first; then with the one after that."""
        assert split in self.splits
        return AnnotatedPairs.of(
            self._pair(number % self.count, (number + CATEGORIES * (1 + number // self.count)) % self.count)
            for number in range(self.pair_count)
        )

    def members(self, split: str) -> frozenset[str]:
        assert split in self.splits
        return frozenset(image.id for image in self.images())

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (nothing is odd about what is drawn)
        return ()

    def read(self, image: ImageRecord) -> bytes:
        pixels = np.random.default_rng(int(image.file)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return b"P6\n%d %d\n255\n" % (SIDE, SIDE) + pixels.tobytes()

    def _pair(self, source: int, target: int) -> Pair:
        points = np.random.default_rng(source).uniform(1, SIDE - 1, (2, POINTS, 2))
        names = tuple(f"k{number}" for number in range(POINTS))
        return Pair(_id(source), _id(target), f"c{source % CATEGORIES:02d}", points[0], points[1], names)


def measure(images: int, counts: Sequence[int], folder: Path) -> list[Peaks]:
    """Build a store of so many images in `folder`, and evaluate on each number of pairs."""
    write_small_model(folder / "model", seed=0)
    store = ("--store", str(folder / "store.zarr"))
    build = _peak_of(DrawnImages(images, images), [*BUILD, *store, "--model", str(folder / "model")])
    return [
        Peaks(
            images,
            pairs,
            build,
            _peak_of(DrawnImages(images, pairs), [*EVAL, *store, "--out", str(folder / f"run-{pairs}")]),
        )
        for pairs in counts
    ]


@dataclass(frozen=True, slots=True)
class Looked:
    """What a command takes that finds nothing to do, on a store of so many images and rows: seconds of wall clock, and
    bytes of memory at most."""

    images: int
    rows: int
    command: str
    seconds: float
    peak: int


def look(images: int, rows: int, folder: Path) -> list[Looked]:
    """Make a store of small latents, and `rows` - 1 noisy latents per image, at a timestep each; look at it."""
    write_small_model(folder / "model", seed=0)
    place, timesteps = folder / "store.zarr", [str(step) for step in range(rows - 1)]
    drawn = DrawnImages(images, 0)
    build = [*BUILD, "--store", str(place), "--model", str(folder / "model"), "--no-sync"]
    _peak_of(DrawnImages(CATEGORIES, 0), build)  # a small one, for its header
    small = open_store(place)
    shape = small.latents().row_shape
    shutil.rmtree(place)
    keys = [image_key(image, drawn.read(image)) for image in drawn.images()]
    names, categories = zip(*((image.id, image.category) for image in drawn.images()), strict=True)
    sizes = np.full((images, 2), SIDE, dtype=np.int32)
    table = ImageTable(names, categories, tuple(keys), sizes)
    store = create_store(place, small.header, table, shape, durable=False)
    clean = np.zeros(shape, dtype=np.float32)
    latents, noisy = store.latents(), [store.require_noisy(int(step), 1) for step in timesteps]
    for row in range(images):
        latents.write((row,), clean)
        for step, array in enumerate(noisy):
            array.write((row, 0), noisy_latent(store, clean, row, step, 0))
    commands = {
        "cache info": ["cache", "info", "--store", str(place)],
        "cache build": [*build, "--t", ",".join(timesteps)],
        "cache build --dry-run": [*build, "--t", ",".join(timesteps), "--dry-run"],
    }
    found = []
    for name, arguments in commands.items():
        started = time.monotonic()
        peak = _peak_of(drawn, arguments)
        found.append(Looked(images, rows * images, name, time.monotonic() - started, peak))
    return found


def _id(number: int) -> str:
    return f"c{number % CATEGORIES:02d}/{number:06d}"


def _peak_of(dataset: DrawnImages, arguments: Sequence[str]) -> int:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(dataset, arguments, theirs))
    process.start()
    theirs.close()
    try:
        peak: int = ours.recv()
    except EOFError:
        raise RuntimeError(f"dualsd {' '.join(arguments)} failed, as it says above.") from None
    finally:
        process.join()
    return peak


def _run(dataset: DrawnImages, arguments: Sequence[str], answer: Connection) -> None:
    def drawn(_name: str, _root: Path | None) -> Dataset:
        return dataset

    registry.open_dataset = drawn
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        app(list(arguments), standalone_mode=False)
    answer.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main(
    images: Annotated[str, typer.Option(help="Numbers of images, separated by commas.")] = "1000,10000",
    pairs: Annotated[
        str | None, typer.Option(help="Numbers of pairs, separated by commas.", show_default="as many as images")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows per image of stores that are only looked at.", show_default="none")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the peaks to FILE.", metavar="FILE")] = None,
) -> None:
    """Print the peaks."""
    # loaded before the fork: what the libraries take is the same whatever they are asked
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    if rows is not None:
        for count in map(int, images.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                for own in look(count, rows, Path(folder)):
                    typer.echo(
                        f"{own.images} images, {own.rows} rows: {own.command} {own.seconds:.1f} s "
                        f"({1000 * own.seconds / own.images:.3f} ms per image), {own.peak / MEGABYTE:.0f} MB"
                    )
        return
    measured: list[Peaks] = []
    for count in map(int, images.split(",")):
        if count % CATEGORIES:
            raise typer.BadParameter(f"images come in {CATEGORIES} equal categories, which {count} do not make")
        with tempfile.TemporaryDirectory() as folder:
            measured += measure(count, [count] if pairs is None else list(map(int, pairs.split(","))), Path(folder))
    for peaks in measured:
        typer.echo(
            f"{peaks.images} images, {peaks.pairs} pairs: build {peaks.build / MEGABYTE:.0f} MB, "
            f"eval {peaks.eval / MEGABYTE:.0f} MB"
        )
    if json is not None:
        json.write_text(json_module.dumps([asdict(peaks) for peaks in measured]))


if __name__ == "__main__":
    typer.run(main)
