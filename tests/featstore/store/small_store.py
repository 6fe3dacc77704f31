"""A store of random rows, of every kind of array, without model or dataset."""

from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.backbones.base import NetworkName
from featstore.backbones.noise import Latents
from featstore.store.images import ImageTable
from featstore.store.keys import Extractor, StoreLocation, map_path
from featstore.store.metadata import open_root
from featstore.store.objects import Folder
from featstore.store.rows import Row, RowArray, require_rows
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, create_store

HEADER = StoreHeader("folder", "/data", "owner/model", "main", "ab" * 16, 64, Latents.SAMPLE, {}, 7)
EXTRACTOR = Extractor("ab" * 16, {"kind": "text", "template": "a photo of a {category}"}, 8, "float32", 7)
OTHER = Extractor("ab" * 16, {"kind": "single", "content": {"2": "0" * 16}}, 1, "float32", 7)
DRAWS = 2
LATENT = (4, 8, 8)
MAP = (6, 4, 4)


def empty_group(path: Path) -> zarr.Group:
    """A group of nothing, as stores are opened."""
    zarr.create_group(path)
    return open_root(Folder(path))


def row_values(array: RowArray, row: Row) -> NDArray[np.float16]:
    """What row `row` of an array holds."""
    seed = [*array.path.encode(), *row]
    return np.random.default_rng(seed).normal(size=array.row_shape).astype(np.float16)


def fill(array: RowArray) -> None:
    """Write every row."""
    for row in np.ndindex(*array.rows_shape):
        array.write(row, row_values(array, row))


def write_small_store(path: StoreLocation, images: int = 3) -> Store:
    """latents; noisy latents at two timesteps; maps of a text at three places, and of a learned prompt; patch tokens;
    a grid that was stopped."""
    ids = tuple(f"cat/{index}" for index in range(images))
    table = ImageTable(ids, ("cat",) * images, tuple(f"k{row}" for row in range(images)), np.full((images, 2), 50))
    store = create_store(path, HEADER, table, LATENT)
    fill(store.latents())
    for timestep in (50, 261):
        fill(store.require_noisy(timestep, DRAWS))
    for extractor, layer, timestep in ((EXTRACTOR, 2, 261), (EXTRACTOR, 3, 50), (EXTRACTOR, 3, 261), (OTHER, 2, 261)):
        fill(store.require_maps(extractor, layer, timestep, MAP))
    fill(store.require_patch_tokens(NetworkName("dino", "cd" * 16), (5, 3)))
    fill(require_rows(store.group, "grids/0123456789abcdef", (images,), (2, 1, 2, 4)))
    return store


MAP_PATH = map_path(EXTRACTOR, 2, 261)
ARRAYS = [
    "cond/dinov2",
    "grids/0123456789abcdef",
    "latents",
    *sorted(
        map_path(*place) for place in ((EXTRACTOR, 2, 261), (EXTRACTOR, 3, 50), (EXTRACTOR, 3, 261), (OTHER, 2, 261))
    ),
    "noisy/t0050",
    "noisy/t0261",
]
"""Paths of its arrays of rows, sorted."""


def array_of(store: Store, path: str) -> RowArray:
    """One of them."""
    array = store.array(path)
    assert array is not None
    return array


def place_of(store: Store, path: str, row: Row) -> tuple[Path, int, int]:
    """(file, offset, length) of a row, alone in its file or, as Zarr's sharding codec has it, one of a packed one."""
    array = array_of(store, path).array
    end = (0,) * (array.ndim - len(row))
    folder = Path(str(store.path)) / path
    if array.shards is None:
        file = folder / f"c.{'.'.join(map(str, (*row, *end)))}"
        return file, 0, file.stat().st_size
    shard = array.shards[: len(row)]
    file = folder.joinpath("c", *(str(own // size) for own, size in zip(row, shard, strict=True)), *map(str, end))
    index = np.frombuffer(file.read_bytes()[-16 * int(np.prod(shard)) - 4 : -4], dtype="<u8").reshape(*shard, 2)
    offset, length = index[tuple(own % size for own, size in zip(row, shard, strict=True))].tolist()
    return file, offset, length


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store but the lock."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


def flip(file: Path, position: int, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << bit
    file.write_bytes(data)
