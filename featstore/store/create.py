"""Make groups and arrays that any number of processes may make at the same instant: whoever is first made them."""

from collections.abc import Callable

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore


def create_missing(root: zarr.Group, make: Callable[[zarr.Group], object]) -> None:
    """Make those of the groups and arrays that `make` makes, in the group that it is given, which `root` lacks.

    zarr itself looks whether something is there and then writes it, and so may write over what another process made in
    between. Here it writes to memory, and each file of metadata is then put into its place whole, by a link that fails
    where there is one: no lock is needed, on one machine or on several, and whoever is killed leaves nothing half made.
    """
    memory = MemoryStore()
    make(zarr.create_group(memory))
    for key in sorted(sync(_keys(memory)), key=lambda key: key.count("/")):  # a group before what it holds
        made = sync(memory.get(key, default_buffer_prototype()))
        assert made is not None, "listed just now"
        sync((root.store_path / key).set_if_not_exists(made))


async def _keys(memory: MemoryStore) -> list[str]:
    return [key async for key in memory.list() if key != "zarr.json"]
