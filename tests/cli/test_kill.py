"""SIGKILL anywhere in `cache build`, `cache maps` and `train`: what is there can be used, and one more run ends in the
same files, bit by bit, as one that was never interrupted.

May differ: in `run.json` when the run was made and where its store lay, in `metrics.csv` the seconds, and TensorBoard's
files, a new one a run; what they show may not.
"""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import zarr
from PIL import Image

from featstore.progress import Silent
from featstore.store.store import open_store
from featstore.store.summary import summarise
from featstore.store.verify import verify
from tests.faults import Ended, Fault, Forks, evenly, open_forks
from tests.featstore.store.small_store import contents
from tests.featstore.trainable import write_trainable

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds open folders in /proc")

FEW, MANY = 8, 50
STORE = "dualsd.zarr"
RUN = Path("runs/r")
MAPS = ["cache", "maps", "--layers", "2,3", "--t", "50,50", "--ensemble", "1", "--batch-size", "4"]
TRAIN = ["train", "--mode", "class", "--length", "4", "--batch", "2", "--draws", "2", "--device", "cpu"]
TRAIN += ["--steps", "4", "--val-every", "2", "--val-pairs", "4", "--checkpoint-every", "2", "--batch-size", "4"]


@dataclass(frozen=True)
class Case:
    """A command, the folder that it starts in, how many places it has, and the folder that it ends in where nobody
    interrupts it. again: the command that goes on, of the folder that a kill left."""

    start: Path
    arguments: list[str]
    again: Callable[[Path], list[str]]
    places: tuple[str, ...]
    whole: Path


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    # one thread for zarr's files, so that every run writes in the order of the one that was counted
    with open_forks({"ZARR_THREADING__MAX_WORKERS": "1"}) as opened:
        yield opened


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, forks: Forks, small_model: Path) -> Callable[[str], Case]:
    """Cases by name, each made when it is first asked for."""
    base = tmp_path_factory.mktemp("cases")
    spair = base / "spair"
    write_trainable(spair)
    build = ["cache", "build", "--dataset", "spair", "--root", str(spair), "--model", str(small_model)]
    build += ["--size", "64", "--t", "50", "--batch-size", "4"]
    made: dict[str, Case] = {}

    def counted(name: str, start: Path, arguments: list[str], again: Callable[[Path], list[str]]) -> Case:
        whole = base / name
        shutil.copytree(start, whole)
        ended = ok(forks.run(whole, arguments))
        return Case(start, arguments, again, ended.places, whole)

    def case(name: str) -> Case:
        if name in made:
            return made[name]
        if name == "build":
            empty = base / "empty"
            empty.mkdir()
            made[name] = counted(name, empty, build, lambda _: build)
        elif name == "build again":
            # packed, of other photographs, and with fewer draws: it is unpacked, rows are forgotten, arrays grow
            before = base / "before"
            shutil.copytree(case("build").whole, before)
            ok(forks.run(before, ["cache", "pack"]))
            turned = base / "turned"
            shutil.copytree(spair, turned)
            for file in (turned / "JPEGImages").glob("*/0.jpg"):
                Image.open(file).rotate(180).save(file)
            more = [*build, "--root", str(turned), "--ensemble", "2"]
            made[name] = counted(name, before, more, lambda _: more)
        elif name == "maps":
            made[name] = counted(name, case("build").whole, MAPS, lambda _: MAPS)
        else:
            new = [*TRAIN, "--name", RUN.name]
            resumed = ["train", "--resume", str(RUN), "--device", "cpu", "--batch-size", "4"]
            made[name] = counted(
                name, case("build").whole, new, lambda folder: resumed if (folder / RUN).exists() else new
            )
        return made[name]

    return case


NAMES = ["build", "build again", "maps", "train"]


@pytest.mark.parametrize(
    ("name", "kills"), [*((name, FEW) for name in NAMES), *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in NAMES)]
)
def test_killed_anywhere(
    cases: Callable[[str], Case], forks: Forks, tmp_path: Path, name: str, kills: int
) -> None:
    case = cases(name)
    assert len(case.places) > MANY
    for place in evenly(len(case.places), kills):
        assert_survives(case, forks, tmp_path / f"{place}", place)


def assert_survives(case: Case, forks: Forks, folder: Path, place: int) -> None:
    """A kill at one place, in a new folder."""
    shutil.copytree(case.start, folder)
    what = f"place {place} of {len(case.places)}, {case.places[place - 1]}"
    killed = forks.run(folder, case.arguments, Fault(kill=place))
    assert killed.code == -signal.SIGKILL, f"{what}: {killed.output}"
    assert_usable(folder, what)
    age(folder)
    again = forks.run(folder, case.again(folder))
    assert again.code == 0, f"{what}: {again.output}"
    assert_same(folder, case.whole, what)
    shutil.rmtree(folder)


def ok(ended: Ended) -> Ended:
    assert ended.code == 0, ended.output
    return ended


def assert_usable(folder: Path, what: str) -> None:
    """The store opens, none of its rows is damaged, and it says what it holds; or there is none yet."""
    path = folder / STORE
    if path.exists():
        store = open_store(path)
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
    assert files(folder) == files(whole), what
    if (whole / RUN).exists():
        assert shown(folder / RUN) == shown(whole / RUN), f"{what}: TensorBoard"


def arrays(path: Path) -> dict[str, tuple[object, object, object, bytes]]:
    """Every array as zarr reads it: shape, type, attributes and bytes."""
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    found = {name: member for name, member in members if isinstance(member, zarr.Array)}
    return {
        name: (array.shape, array.dtype, array.attrs.asdict(), repr(array[:].tolist()).encode() if array.dtype.kind in "OT" else array[:].tobytes())
        for name, array in found.items()
    }


def files(folder: Path) -> Mapping[str, object]:
    """Every file below but TensorBoard's by its name, and empty folders; what may differ is left out."""
    found: dict[str, object] = {
        f"{path.relative_to(folder)}/": None
        for path in folder.rglob("*")
        if path.is_dir() and "tensorboard" not in path.parts and not any(path.iterdir())
    }
    for name, content in contents(folder).items():
        if "/tensorboard/" in name:
            continue
        found[name] = content
        if name == f"{RUN}/run.json":
            described = json.loads(content)
            described.pop("created")
            described["store"].pop("path")
            found[name] = described
        elif name == f"{RUN}/metrics.csv":
            found[name] = [row[:-1] for row in csv.reader(content.decode().splitlines())]
    return found


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return {
        name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]
    }
