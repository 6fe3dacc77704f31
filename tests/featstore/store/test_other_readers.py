"""Libraries that know nothing of dualsd read its stores: raw, rounded and packed rows; and say so of a damaged one."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.progress import Silent
from featstore.store.pack import pack
from featstore.store.store import open_store
from tests.featstore.store.small_store import EXTRACTOR, MAP, MAP_PATH, array_of, fill, flip, write_small_store

ROOT = Path(__file__).parents[3]
BESIDE = ROOT / ".venv" / "readers" / "bin" / "python"
ROUNDED = replace(EXTRACTOR, encoding="bitround4")
PATHS = ["latents", MAP_PATH, MAP_PATH.replace(EXTRACTOR.key, ROUNDED.key)]

needs_readers = pytest.mark.skipif(not BESIDE.exists(), reason="`make test` installs other readers into .venv/readers")


def read(python: str | Path, library: str, store: Path, wanted: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """What a library reads of `ARRAY:ROW`; nothing where it raises."""
    out = store.parent / "read.npz"
    command = [str(python), str(ROOT / "tests" / "other_readers.py"), library, str(store), str(out), *wanted]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(out) as found:
        return dict(found)


@pytest.mark.parametrize(
    ("python", "library"),
    [
        pytest.param(sys.executable, "zarr", id="zarr-3.1"),
        pytest.param(BESIDE, "zarr", id="zarr-3.0", marks=needs_readers),
        pytest.param(BESIDE, "xarray", id="xarray", marks=needs_readers),
        pytest.param(BESIDE, "tensorstore", id="tensorstore", marks=needs_readers),
    ],
)
def test_rows(python: str | Path, library: str, tmp_path: Path) -> None:
    """They are those that dualsd reads, before and after packing, and a damaged one is an error."""
    place = tmp_path / "own.zarr"
    store = write_small_store(place)
    fill(store.require_maps(ROUNDED, 2, 261, MAP))
    expected = {f"{path}:{row}": array_of(store, path).read((row,)) for path in PATHS for row in (0, 1)}
    for packed in (False, True):
        if packed:
            assert {*PATHS} <= {one.path for one in pack(open_store(place), Silent()) if not one.why}
        shutil.copytree(place, damaged := tmp_path / f"damaged-{packed}.zarr")
        flip(damaged / MAP_PATH / ("c/0/0/0/0" if packed else "c.0.0.0.0"), 5, 3)
        found = read(python, library, place, [*expected, "images/width:-1"])
        assert found.pop("images/width:-1").tolist() == store.images.sizes[:, 0].tolist()
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], values) for name, values in expected.items())
        assert f"{MAP_PATH}:0" not in read(python, library, damaged, [f"{MAP_PATH}:0"])
