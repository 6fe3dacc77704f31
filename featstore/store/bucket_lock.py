"""One process at a time rearranges a store on object storage: an object that only one can create.

A lock file goes with its process; this object stays where one is killed. So it counts for a limited time: then the next
one takes it over, by a write that holds only if nobody else took it over before."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from featstore.store.bucket import Bucket

LEASE_SECONDS = 900.0
"""For which a lock counts; what is done under it (removing arrays, forgetting rows) takes seconds to a few minutes."""

WAIT_SECONDS = 1.0


@contextmanager
def exclusive_in(bucket: Bucket, key: str) -> Iterator[None]:
    """Waits until no other process holds the lock, and keeps others waiting. Not to be nested."""
    token = uuid.uuid4().hex.encode()
    while not _take(bucket, key, token):
        time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        held = bucket.read(key)
        if held is not None and bytes(held) == token:
            bucket.delete([key])


def _take(bucket: Bucket, key: str, token: bytes) -> bool:
    if bucket.create(key, token):
        return True
    found = bucket.stat(key)
    if found is None:
        return False
    held, e_tag = found
    return time.time() - held.modified > LEASE_SECONDS and bucket.replace(key, token, e_tag)
