"""zarr's store on object storage, whose errors are sentences and whose objects are each one PUT."""

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Self

from obstore import put_async
from obstore.store import S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from featstore.store.bucket import Bucket
from featstore.store.bucket_errors import asking


class BucketStore(ObjectStore[S3Store]):
    """See `zarr.storage.ObjectStore`. Raises `StoreError` where object storage cannot be used."""

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
        with self._asking(f"reading {key}"):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of objects."""
        with self._asking("reading"):
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        """Whether an object is there."""
        with self._asking(f"looking for {key}"):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, whole."""
        self._check_writable()
        with self._asking(f"writing {key}"):
            await put_async(self.store, key, value.to_bytes(), use_multipart=False)

    async def delete(self, key: str) -> None:
        """Delete an object, be it there or not."""
        with self._asking(f"deleting {key}"):
            await super().delete(key)

    def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Names right below a prefix; one request a thousand."""
        return self._told(super().list_dir(prefix), prefix)

    def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        """All keys below a prefix."""
        return self._told(super().list_prefix(prefix), prefix)

    async def _told(self, names: AsyncGenerator[str, None], prefix: str) -> AsyncGenerator[str, None]:
        with self._asking(f"listing {prefix}"):
            async for name in names:
                yield name

    def _asking(self, doing: str) -> Any:
        return asking(self.bucket.location, doing)
