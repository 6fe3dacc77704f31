"""What zarr keeps of a store, by way of its objects: the metadata of groups and arrays.

They are made in memory, by zarr, and put into their places one object at a time, on the condition that none is there:
no lock is needed, on one machine or on several, and whoever is killed leaves nothing half made.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore

from featstore.errors import MetadataError
from featstore.files import writing
from featstore.store.keys import METADATA, METADATA_ERRORS
from featstore.store.objects import Objects


class ZarrObjects(Store):
    """A store's objects as zarr asks for them, see `zarr.abc.store.Store`."""

    supports_writes = supports_deletes = supports_listing = True

    def __init__(self, objects: Objects) -> None:
        super().__init__()
        self.objects = objects

    def __str__(self) -> str:
        return str(self.objects)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrObjects) and self.objects == other.objects

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object's bytes, or some of them."""
        match byte_range:
            case RangeByteRequest(start, stop):
                content = self.objects.get(key, start, stop)
            case OffsetByteRequest(start):
                content = self.objects.get(key, start)
            case SuffixByteRequest(count):
                content = self.objects.get(key, -count)
            case _:
                content = self.objects.get(key)
        return None if content is None else prototype.buffer.from_bytes(content.tobytes())

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several of those."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether an object is there."""
        return self.objects.get(key, 0, 1) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, whole."""
        self.objects.put(key, value.as_numpy_array().data)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object where none is there."""
        self.objects.create(key, value.as_numpy_array().data)

    async def delete(self, key: str) -> None:
        """Delete an object, be it there or not."""
        self.objects.delete([key])

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        self.objects.remove(prefix)

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for one in self.objects.below():
            yield one.key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys below a prefix."""
        for one in self.objects.below(prefix.rstrip("/")):
            yield one.key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names right below a prefix."""
        for names in self.objects.level(prefix.rstrip("/")):
            for name in names:
                yield name


def objects_of(group: zarr.Group) -> Objects:
    """Where a store's group lies."""
    place = group.store_path.store
    assert isinstance(place, ZarrObjects), "a store's groups are opened by `open_root`"
    return place.objects


def open_root(objects: Objects) -> zarr.Group:
    """The root group of a store as it is now. Raises one of `METADATA_ERRORS` or zarr's GroupNotFoundError where there
    is none that can be read."""
    return zarr.open_group(ZarrObjects(objects), mode="r+", zarr_format=3, use_consolidated=False)


def metadata_of(make: Callable[[zarr.Group], object], **attributes: Any) -> dict[str, bytes]:
    """What zarr writes for the groups and arrays that `make` makes in the group that it is given, which has these
    attributes: by key, a group before what it holds."""
    memory: dict[str, Buffer] = {}
    make(zarr.create_group(MemoryStore(memory), attributes=attributes))
    return {key: memory[key].to_bytes() for key in sorted(memory, key=lambda key: key.count("/"))}


def create_missing(objects: Objects, make: Callable[[zarr.Group], object]) -> None:
    """Make those of the groups and arrays that `make` makes, in the group that it is given, which a store lacks. zarr
    itself looks whether something is there and then writes it, and so may write over what another process made."""
    for key, content in metadata_of(make).items():
        if key != METADATA:
            objects.create(key, content)


def rewrite_metadata(objects: Objects, path: str, make: Callable[[zarr.Group], object]) -> None:
    """Put the metadata of the group or array at `path` that `make` makes in the place of those that lie there."""
    key = f"{path}/{METADATA}"
    objects.put(key, metadata_of(make)[key])


def require_group(root: zarr.Group, path: str, description: Mapping[str, Any]) -> None:
    """Make a group where it is not there, and let it say what its arrays are. Raises `MetadataError` where its own
    metadata are damaged."""
    objects = objects_of(root)
    try:
        with writing(f"The group {path!r} of {objects}", place=objects.disk):
            if path not in root:
                # in one write, and not an attribute at a time: a kill would leave a group that says half of what it is
                create_missing(objects, lambda made: made.create_group(path, attributes=dict(description)))
            group = root.require_group(path)
            if group.attrs.keys() < description.keys():  # one that was made on the way to an array, or half described
                group.update_attributes(dict(description))
    except METADATA_ERRORS as error:
        raise damaged_metadata(root, path, str(error) or repr(error)) from error


def require_parents(root: zarr.Group, path: str) -> None:
    """Make the groups above an array. Stores of earlier versions may lack some: a kill could leave an array in a folder
    that is no group, where no listing finds it. Damaged ones are what `cache verify` is for; what lies in them can be
    read without."""
    for parent in PurePosixPath(path).parents[:-1]:
        try:
            require_group(root, parent.as_posix(), {})
        except MetadataError:
            continue


def damaged_metadata(group: zarr.Group, path: str, fault: str) -> MetadataError:
    """What to raise of an array or a group whose metadata cannot be what was written."""
    return MetadataError(
        f"{path!r} in {group.store_path.store} has damaged metadata ({fault}): run `dualsd cache verify --drop`, or "
        "delete that folder and run the same command again.",
        fault,
    )
