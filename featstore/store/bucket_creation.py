"""A store made or opened on object storage, where there is no renaming: its root comes last, and only if none came
before."""

from collections.abc import Callable, Mapping
from typing import Any

import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from featstore.store.bucket import Bucket
from featstore.store.rows import METADATA


def open_zarr(bucket: Bucket) -> ZarrStore:
    """As zarr takes it."""
    # zarr's store is a class of obstore's, which only those have installed who need it
    from featstore.store.bucket import BucketStore

    return BucketStore(bucket)


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
