"""A store on object storage as zarr takes it, and one made there, where there is no renaming: its root comes last, and
only if none came before. Imported where a bucket is used: `BucketStore` is a class of obstore's, which only those have
installed who need it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Self

import zarr
from obstore.store import S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, ObjectStore

from featstore.store.bucket import Bucket
from featstore.store.rows import METADATA


class BucketStore(ObjectStore[S3Store]):
    """See `zarr.storage.ObjectStore`: what dualsd uses of it, with the retries of `Bucket`. Raises `StoreError` where
    object storage cannot be used."""

    def __init__(self, bucket: Bucket, *, read_only: bool = False) -> None:
        super().__init__(bucket.client, read_only=read_only)
        self.bucket = bucket

    def __str__(self) -> str:
        return str(self.bucket.location)

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same, to be read only."""
        return type(self)(self.bucket, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object's bytes."""
        if byte_range is not None:  # of packed arrays alone, which no store of ours has there
            return await super().get(key, prototype, byte_range)
        content = await asyncio.to_thread(self.bucket.read, key)
        return None if content is None else prototype.buffer.from_bytes(bytes(content))

    async def exists(self, key: str) -> bool:
        """Whether an object is there."""
        return await asyncio.to_thread(self.bucket.stat, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, whole."""
        self._check_writable()
        await asyncio.to_thread(self.bucket.write, key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object where none is there."""
        self._check_writable()
        await asyncio.to_thread(self.bucket.create, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Delete an object, be it there or not."""
        self._check_writable()
        await asyncio.to_thread(self.bucket.delete, [key])

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        self._check_writable()
        found = await asyncio.to_thread(self.bucket.objects, prefix)
        await asyncio.to_thread(self.bucket.delete, [one.path for one in found])

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Names right below a prefix; one request a thousand."""
        for level in await asyncio.to_thread(self.bucket.level, prefix.rstrip("/")):
            for path in level:
                yield path.rpartition("/")[2]


def create_in_bucket(bucket: Bucket, attributes: Mapping[str, Any], fill: Callable[[zarr.Group], None]) -> bool:
    """Make a group with these attributes that `fill` fills; whoever looks sees all of it or nothing. False where
    another process made one there meanwhile."""
    memory: dict[str, Any] = {}
    fill(zarr.create_group(MemoryStore(memory), attributes=dict(attributes)))
    contents = {key: _bytes_of(memory, key) for key in memory}
    root = contents.pop(METADATA)
    for key, content in contents.items():
        bucket.write(key, content)
    return bucket.create(METADATA, root)


def _bytes_of(memory: dict[str, Any], key: str) -> bytes:
    stored = sync(MemoryStore(memory).get(key, default_buffer_prototype()))
    assert stored is not None, "it was listed"
    return stored.to_bytes()
