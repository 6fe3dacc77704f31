"""Peak memory of `dualsd cache build` and `dualsd eval`, by the number of images: it must not grow with it.

Run: `python -m benchmarks.memory [--images 1000,10000] [--json FILE]`. Images of 32x32 pixels are drawn on the fly, in
20 categories, as many pairs as images, 4 keypoints a pair; the model is small, with random weights. Each command runs
in a process of its own, forked after the libraries were loaded, and says its own peak (`ru_maxrss`).
"""

import contextlib
import json as json_module
import multiprocessing
import os
import resource
import tempfile
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
from featstore.datasets.records import Dataset, ImageRecord, Pair, ThetaRule
from tools.demo_model.small_model import write_small_model

SIDE = 32
CATEGORIES = 20
POINTS = 4
MEGABYTE = 1_000_000

BUILD = ("cache", "build", "--size", str(SIDE), "--t", "261", "--batch-size", "64", "--device", "cpu")
EVAL = ("eval", "--layers", "1", "--t", "261", "--ensemble", "1", "--batch-size", "64", "--device", "cpu")


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes of memory at most, resident. images: how many there were."""

    images: int
    build: int
    eval: int


@dataclass(frozen=True, slots=True)
class DrawnImages:
    """A dataset of `count` images that are a function of their number. See `featstore.datasets.records.Dataset`."""

    count: int

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

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """Each image with the next one of its category, the last with the first."""
        assert split in self.splits
        return tuple(self._pair(number, (number + CATEGORIES) % self.count) for number in range(self.count))

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


def measure(images: int, folder: Path) -> Peaks:
    """Build a store of so many images in `folder`, and evaluate on as many pairs."""
    write_small_model(folder / "model", seed=0)
    store = ("--store", str(folder / "store.zarr"))
    build = _peak_of(images, [*BUILD, *store, "--model", str(folder / "model")])
    evaluation = _peak_of(images, [*EVAL, *store, "--out", str(folder / "run")])
    return Peaks(images, build, evaluation)


def _id(number: int) -> str:
    return f"c{number % CATEGORIES:02d}/{number:06d}"


def _peak_of(images: int, arguments: Sequence[str]) -> int:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(images, arguments, theirs))
    process.start()
    theirs.close()
    try:
        peak: int = ours.recv()
    except EOFError:
        raise RuntimeError(f"dualsd {' '.join(arguments)} failed, as it says above.") from None
    finally:
        process.join()
    return peak


def _run(images: int, arguments: Sequence[str], answer: Connection) -> None:
    def drawn(_name: str, _root: Path | None) -> Dataset:
        return DrawnImages(images)

    registry.open_dataset = drawn
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        app(list(arguments), standalone_mode=False)
    answer.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main(
    images: Annotated[str, typer.Option(help="Numbers of images, separated by commas.")] = "1000,10000",
    json: Annotated[Path | None, typer.Option(help="Write the peaks to FILE.", metavar="FILE")] = None,
) -> None:
    """Print the peaks."""
    # loaded before the fork: what the libraries take is the same whatever they are asked
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    measured = []
    for count in map(int, images.split(",")):
        if count % CATEGORIES:
            raise typer.BadParameter(f"images come in {CATEGORIES} equal categories, which {count} do not make")
        with tempfile.TemporaryDirectory() as folder:
            measured.append(measure(count, Path(folder)))
        peaks = measured[-1]
        typer.echo(f"{count} images: build {peaks.build / MEGABYTE:.0f} MB, eval {peaks.eval / MEGABYTE:.0f} MB")
    if json is not None:
        json.write_text(json_module.dumps([asdict(peaks) for peaks in measured]))


if __name__ == "__main__":
    typer.run(main)
