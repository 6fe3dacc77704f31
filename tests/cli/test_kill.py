"""SIGKILL anywhere in `cache build`, `cache maps` and `train`: what is there can be used, and one more run ends in the
same arrays and files, bit by bit, as one that was never interrupted; `tests.cli.crash_cases` says what may differ."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featstore.files import PARTIAL
from tests.cli.crash_cases import NAMES, STORE, Case, age, assert_same, assert_usable
from tests.faults import LINUX, ROOT, Fault, Forks, evenly

pytestmark = LINUX

FEW, MANY = 8, 50
REAL_KILLS = 3
LATEST = 2.5
"""Seconds after its first change to the disk at which a real command is killed, at most."""


@pytest.mark.parametrize(
    ("name", "kills"),
    [*((name, FEW) for name in NAMES), *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in NAMES)],
)
def test_killed_anywhere(cases: Callable[[str], Case], forks: Forks, tmp_path: Path, name: str, kills: int) -> None:
    """At places that lie evenly between the first change to the disk and after the last."""
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
    assert_goes_on(case, forks, folder, what)


def assert_goes_on(case: Case, forks: Forks, folder: Path, what: str) -> None:
    """What a kill left can be used, and one more run completes it; rows that are there are not made a second time."""
    assert_usable(folder, what)
    age(folder)
    made = rows(folder)
    again = forks.run(folder, case.again(folder))
    assert again.code == 0, f"{what}: {again.output}"
    assert_same(folder, case.whole, what)
    if not (case.start / STORE / "latents" / "c").exists():  # rows that were packed are written, or made, anew
        # but for one, whose image lacks its other layer: both come of one pass
        assert len(made.items() - rows(folder).items()) <= 1, what
    shutil.rmtree(folder)


def rows(folder: Path) -> dict[Path, int]:
    """When the files of rows were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / STORE).rglob("c.*") if path.suffix != PARTIAL}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build", "maps", "train"])
def test_the_real_command_killed_at_random(
    cases: Callable[[str], Case], forks: Forks, tmp_path: Path, name: str
) -> None:
    """From outside, at moments after its first change to the disk; with zarr's usual threads."""
    case, moments, codes = cases(name), random.Random(name), []
    for kill in range(REAL_KILLS):
        folder, moment = tmp_path / f"{kill}", moments.uniform(0, LATEST)
        shutil.copytree(case.start, folder)
        before = set(folder.rglob("*"))
        command = [sys.executable, "-m", "dualsd", *case.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and set(folder.rglob("*")) == before:
                time.sleep(0.01)
            time.sleep(moment)
            process.kill()
        codes.append(process.returncode)
        assert_goes_on(case, forks, folder, f"{name}, {moment:.2f} s after its first change")
    assert set(codes) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in codes
