"""A prefix in a bucket, and the few things that a store asks of it: read, write, list and delete objects.

Every object is one PUT and whole or not there. What fails on the way (5xx, 429, a connection that is refused, dropped
or cut off in the middle of a body) is tried again, see `Retries`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from featstore.errors import StoreError
from featstore.store.aws_profile import settings_of_profile
from featstore.store.location import S3Location

if TYPE_CHECKING:
    from obstore.store import S3Store

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Retries:
    """How long object storage is waited for, in seconds. again: times that a request is tried again. first_wait,
    longest_wait: before it is, doubling, with jitter. give_up: after which no new try begins. connect: for a
    connection. silence: without a byte of an answer. request: for one whole request."""

    again: int = 8
    first_wait: float = 0.1
    longest_wait: float = 10.0
    give_up: float = 180.0
    connect: float = 5.0
    silence: float = 30.0
    request: float = 300.0


RETRIES = Retries()
"""docs/object-storage.md says what they come to, in words."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """path: within the store. modified: seconds since 1970."""

    path: str
    bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """Keys are paths within the store. All raise `StoreError` where object storage cannot be used."""

    location: S3Location
    client: "S3Store"
    retries: Retries

    def read(self, key: str) -> memoryview | None:
        """An object's bytes, None where it is not there."""
        import obstore

        try:
            return self._ask(f"reading {key}", lambda: memoryview(obstore.get(self.client, key).bytes()))
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> None:
        """Write an object, in one PUT: a killed upload in parts would leave parts that are paid for and never seen."""
        import obstore

        self._ask(f"writing {key}", lambda: obstore.put(self.client, key, content, use_multipart=False))

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that is not there yet; whether this did."""
        return self._write_if(key, content, "create")

    def replace(self, key: str, content: bytes, e_tag: str | None) -> bool:
        """Write an object in the place of the one with this tag; whether it was still that one."""
        return self._write_if(key, content, {"e_tag": e_tag})

    def stat(self, key: str) -> tuple[StoredObject, str | None] | None:
        """An object and its tag, None where it is not there."""
        import obstore

        try:
            found = self._ask(f"looking for {key}", lambda: obstore.head(self.client, key))
        except FileNotFoundError:
            return None
        return _stored(found), found["e_tag"]

    def objects(self, path: str = "") -> list[StoredObject]:
        """All objects below a path (all where it is empty); one request a thousand."""
        import obstore

        found = self._ask(
            f"listing {path or 'the store'}", lambda: list(chain(*obstore.list(self.client, prefix=path or None)))
        )
        return [_stored(one) for one in found]

    def level(self, path: str) -> tuple[list[str], list[str]]:
        """(objects, folders) right below a path: their paths; one request a thousand."""
        import obstore

        found = self._ask(
            f"listing {path or 'the store'}", lambda: obstore.list_with_delimiter(self.client, prefix=path or None)
        )
        return [one["path"] for one in found["objects"]], list(found["common_prefixes"])

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, a thousand a request; those that are not there are none."""
        import obstore

        if keys:
            self._ask(f"deleting {keys[0]}", lambda: obstore.delete(self.client, list(keys)))

    def _write_if(self, key: str, content: bytes, mode: Any) -> bool:
        import obstore

        from featstore.store.bucket_errors import ConditionError

        try:
            self._ask(f"creating {key}", lambda: obstore.put(self.client, key, content, mode=mode, use_multipart=False))
        except ConditionError:
            # of a try whose answer was lost the next one finds what it wrote
            found = self.read(key)
            return found is not None and bytes(found) == content
        return True

    def _ask(self, doing: str, request: Callable[[], Answer]) -> Answer:
        """What a request that may be made twice gives. obstore tries it again, see `Retries`, but for what is cut off
        (`is_cut_off`): that is done here."""
        from obstore.exceptions import BaseError

        from featstore.store.bucket_errors import asking, is_cut_off

        with asking(self.location, doing):
            last = time.monotonic() + self.retries.give_up
            for again in range(self.retries.again):
                try:
                    return request()
                except BaseError as error:
                    if not is_cut_off(error) or time.monotonic() > last:
                        raise
                    time.sleep(min(self.retries.first_wait * 2**again, self.retries.longest_wait))
            return request()


def open_bucket(location: S3Location, retries: Retries | None = None) -> Bucket:
    """Where a store lies or will lie; nothing is asked of it yet. Raises `StoreError` where obstore is not installed,
    or an AWS setting cannot be understood."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise StoreError(f"{location} needs the package obstore: pip install 'dualsd[s3]'.") from error
    waits = retries or RETRIES
    settings = settings_of_profile(location)
    endpoint = settings.config.get("endpoint", "")
    try:
        client = S3Store(
            location.bucket,
            prefix=location.prefix,
            config=settings.config,  # type: ignore[arg-type]
            client_options={
                "connect_timeout": timedelta(seconds=waits.connect),
                "read_timeout": timedelta(seconds=waits.silence),
                "timeout": timedelta(seconds=waits.request),
                **({"allow_http": True} if endpoint.startswith("http://") else {}),
            },
            retry_config={
                "max_retries": waits.again,
                "retry_timeout": timedelta(seconds=waits.give_up),
                "backoff": {
                    "init_backoff": timedelta(seconds=waits.first_wait),
                    "max_backoff": timedelta(seconds=waits.longest_wait),
                    "base": 2,
                },
            },
            credential_provider=settings.provider,
        )
    except (BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{location} cannot be opened with these AWS_ settings: {reason}.") from error
    return Bucket(location, client, waits)


def _stored(found: Mapping[str, Any]) -> StoredObject:
    return StoredObject(found["path"], int(found["size"]), found["last_modified"].timestamp())
