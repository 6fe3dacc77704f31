"""Commands that are interrupted, what they start from and end in where nobody does, and how the two are compared.

May differ: in `run.json` when the run was made and where its store lay, in `metrics.csv` the seconds, and TensorBoard's
files, one a run; what they show may not.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from PIL import Image

from featstore.progress import Silent
from featstore.store.care import verify
from featstore.store.store import open_store, summarise
from tests.faults import Ended, Forks
from tests.featstore.store.small_store import contents
from tests.featstore.trainable import write_trainable

STORE = "dualsd.zarr"
RUN = Path("runs/r")
NAMES = ["build", "build again", "maps", "train"]
_MAPS = ["cache", "maps", "--layers", "2,3", "--t", "50,50", "--ensemble", "1", "--batch-size", "4"]
_TRAIN = ["train", "--mode", "class", "--length", "4", "--batch", "2", "--draws", "2", "--device", "cpu"]
_TRAIN += ["--steps", "4", "--val-every", "2", "--val-pairs", "4", "--checkpoint-every", "2", "--batch-size", "4"]
_RESUME = ["train", "--resume", str(RUN), "--device", "cpu", "--batch-size", "4"]


@dataclass(frozen=True)
class Case:
    """A command, the folder that it starts in, its places, and the folder that it ends in where it is let alone."""

    start: Path
    arguments: list[str]
    places: tuple[str, ...]
    whole: Path

    def again(self, folder: Path) -> list[str]:
        """The command that goes on in a folder where this one was interrupted."""
        return _RESUME if (folder / RUN).exists() else self.arguments


def cases_in(base: Path, forks: Forks, model: Path) -> Callable[[str], Case]:
    """The cases of `NAMES`, each made when it is first asked for."""
    spair, made = base / "spair", dict[str, Case]()
    write_trainable(spair)
    build = ["cache", "build", "--dataset", "spair", "--root", str(spair), "--model", str(model)]
    build += ["--size", "64", "--t", "50", "--batch-size", "4"]

    def case(name: str) -> Case:
        if name not in made:
            start, arguments = starts[name]()
            whole = base / name
            shutil.copytree(start, whole)
            made[name] = Case(start, arguments, ok(forks.run(whole, arguments)).places, whole)
        return made[name]

    def from_nothing() -> tuple[Path, list[str]]:
        (base / "empty").mkdir()
        return base / "empty", build

    def from_a_packed_store() -> tuple[Path, list[str]]:
        """Of photographs that have changed since, and with fewer draws: it is unpacked, rows are forgotten, arrays
        grow."""
        shutil.copytree(case("build").whole, base / "packed")
        ok(forks.run(base / "packed", ["cache", "pack"]))
        shutil.copytree(spair, base / "turned")
        for file in (base / "turned" / "JPEGImages").glob("*/0.jpg"):
            Image.open(file).rotate(180).save(file)
        return base / "packed", [*build, "--root", str(base / "turned"), "--ensemble", "2"]

    starts = {
        "build": from_nothing,
        "build again": from_a_packed_store,
        "maps": lambda: (case("build").whole, _MAPS),
        "train": lambda: (case("build").whole, [*_TRAIN, "--name", RUN.name]),
    }
    return case


def ok(ended: Ended) -> Ended:
    """A command that succeeded."""
    assert ended.code == 0, ended.output
    return ended


def assert_usable(folder: Path, what: str) -> None:
    """The store opens, none of its rows is damaged, and it says what it holds; or there is none yet."""
    if (folder / STORE).exists():
        store = open_store(folder / STORE)
        found = verify(store, Silent())
        assert found.sound, f"{what}: {found.bad} {found.metadata}"
        assert summarise(store), what


def age(folder: Path) -> None:
    """Let an hour pass: what may be another run's, half-written just now, is swept only when it is old."""
    then = time.time() - 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def assert_same(folder: Path, whole: Path, what: str) -> None:
    """Both hold the same arrays and the same files, and no others."""
    ours, theirs = arrays(folder / STORE), arrays(whole / STORE)
    assert ours.keys() == theirs.keys(), what
    for path, array in theirs.items():
        assert ours[path] == array, f"{what}: {path}"
    mine, other = files(folder), files(whole)
    assert sorted(mine) == sorted(other), what
    differ = [name for name in other if mine[name] != other[name]]
    assert not differ, f"{what}: {differ}"
    if (whole / RUN).exists():
        assert shown(folder / RUN) == shown(whole / RUN), f"{what}: TensorBoard"


def arrays(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every array that zarr lists, as it reads it: shape, type, attributes and bytes."""
    group = zarr.open_group(path, mode="r")
    found: dict[str, tuple[Any, ...]] = {}
    waiting = [group]
    while waiting:  # level by level: what lies in a folder that is no group is not there
        one = waiting.pop()
        waiting += [own for _, own in one.groups()]
        for _, array in one.arrays():
            values = np.asarray(array[:])
            content = values.tolist() if values.dtype.kind in "OTU" else values.tobytes()
            found[array.path] = (array.shape, str(array.dtype), array.attrs.asdict(), content)
    return found


def files(folder: Path) -> Mapping[str, object]:
    """Every file below but TensorBoard's by its name, and empty folders; what may differ is left out."""
    found: dict[str, object] = {
        f"{path.relative_to(folder)}/": None for path in folder.rglob("*") if path.is_dir() and not any(path.iterdir())
    }
    for name, content in contents(folder).items():
        if name.startswith(f"{RUN}/tensorboard/"):
            continue
        found[name] = content
        if name == f"{RUN}/run.json":
            described = json.loads(content)
            described.pop("created")
            described.pop("checksum")  # of what is left out here as well
            described.pop("command")  # none where the command was called within Python
            described["store"].pop("path")
            found[name] = described
        elif name == f"{RUN}/report.html":  # says when the run was made, and how long it took
            found[name] = None
        elif name == f"{RUN}/metrics.csv":
            found[name] = [row[:3] for row in csv.reader(content.decode().splitlines())]
    return found


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}
