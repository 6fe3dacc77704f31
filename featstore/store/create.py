"""Make groups and arrays that any number of processes may make at the same instant: whoever is first made them."""

import errno
from collections.abc import Callable

import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that know no links: exFAT, many network mounts, Google Drive in Colab."""


def create_missing(root: zarr.Group, make: Callable[[zarr.Group], object]) -> None:
    """Make those of the groups and arrays that `make` makes, in the group that it is given, which `root` lacks.

    zarr itself looks whether something is there and then writes it, and so may write over what another process made in
    between. Here it writes to memory, and each file of metadata is then put into its place whole, by a link that fails
    where there is one: no lock is needed, on one machine or on several, and whoever is killed leaves nothing half made.
    Where there are no links it is looked for and then renamed into its place: one process works there as anywhere.
    """
    memory = MemoryStore()
    make(zarr.create_group(memory))
    for key in sorted(sync(_keys(memory)), key=lambda key: key.count("/")):  # a group before what it holds
        made = sync(memory.get(key, default_buffer_prototype()))
        assert made is not None, "listed just now"
        sync(_put(root.store_path / key, made))


async def _put(place: StorePath, content: Buffer) -> None:
    try:
        await place.set_if_not_exists(content)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not await place.exists():
            await place.set(content)


async def _keys(memory: MemoryStore) -> list[str]:
    return [key async for key in memory.list() if key != "zarr.json"]
