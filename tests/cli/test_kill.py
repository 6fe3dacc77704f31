"""SIGKILL in the middle: the next run goes on from there and ends in the same store."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

KILLED = """
import os, signal
from featstore.store.rows import RowArray
plain, count = RowArray.write, 0
def write(self, row, values):
    global count
    count += 1
    if count == {place}:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, row, values)
RowArray.write = write
from cli.main import app
app({arguments!r})
"""


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def killed(place: int, arguments: list[str]) -> None:
    code = KILLED.format(place=place, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("place", [4, 9])
def test_build(run: Run, photographs: Path, small_model: Path, place: int) -> None:
    """Place 4 is in the second batch of 3 images, place 9 among the noisy latents."""
    arguments = ["cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", str(small_model)]
    arguments += ["--size", "64", "--t", "50", "--batch-size", "3"]
    assert run(*arguments, "--store", "whole.zarr").exit_code == 0
    killed(place, [*arguments, "--store", "killed.zarr"])
    written = len([name for name in contents(Path("killed.zarr")) if "/c." in name])
    assert written == place - 1
    assert run(*arguments, "--store", "killed.zarr").exit_code == 0
    assert contents(Path("killed.zarr")) == contents(Path("whole.zarr"))


def test_maps(run: Run, store: Path) -> None:
    import shutil

    shutil.copytree(store, "whole.zarr")
    arguments = ["cache", "maps", "--layers", "2,3", "--t", "50,50", "--ensemble", "1", "--batch-size", "4"]
    assert run(*arguments, "--store", "whole.zarr").exit_code == 0
    killed(6, [*arguments, "--store", str(store)])
    assert run(*arguments, "--store", str(store)).exit_code == 0
    assert contents(store) == contents(Path("whole.zarr"))
