"""zarr's store on object storage, whose errors are sentences and whose objects are each one PUT."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from obstore.store import S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from featstore.store.bucket import Bucket
from featstore.store.bucket_errors import asking


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
        if byte_range is not None:
            with asking(self.bucket.location, f"reading {key}"):
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
