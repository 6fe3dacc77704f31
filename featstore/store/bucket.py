"""What object storage refuses, in one sentence each: credentials, bucket, region, network and server told apart."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, Self, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from featstore.errors import StoreError
from featstore.store.aws_profile import settings_of_profile
from featstore.store.keys import S3Location

_AGAIN = "run the same command again, what is complete is kept"

_ROLE_ADDRESS = "169.254."
"""Where machines of a cloud ask for the credentials of their role: the last place that is looked at."""

_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken")
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "redirect without")
_BUSY = ("status code: 5", "status code: 429", "SlowDown")
_NO_CONNECTION = ("error sending request", "dns error", "http error", "connect", "timed out", "timeout")


class ConditionError(Exception):
    """A condition of a write did not hold: the object is there already, or another than was thought."""


def is_cut_off(error: Exception) -> bool:
    """Whether a connection was lost where obstore does not try again: in the middle of an answer, or before that of a
    write on a condition."""
    said = str(error).partition("\n\nDebug source")[0]
    tries = re.search(r"after (\d+) retries, max_retries: (\d+)", said)
    exhausted = tries is not None and tries.group(1) == tries.group(2)
    return ("error sending request" in said and not exhausted) or "response body" in said or "decoding" in said


@contextmanager
def asking(location: S3Location, doing: str) -> Iterator[None]:
    """What object storage refuses within becomes a `StoreError` that says what was being done and what helps; a missing
    object stays a FileNotFoundError, a write whose condition does not hold becomes `ConditionError`."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError) as error:
        raise ConditionError(doing) from error
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise StoreError(_sentence(location, doing, error)) from error
        raise
    except BaseError as error:
        raise StoreError(_sentence(location, doing, error)) from error


def _sentence(location: S3Location, doing: str, error: Exception) -> str:
    said = " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]
    if "NoSuchBucket" in said:
        return f"There is no bucket {location.bucket!r}: make it, or check the name in {location} and AWS_ENDPOINT_URL."
    if _ROLE_ADDRESS in said:
        return (
            f"{location} cannot be used without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, or AWS_SKIP_SIGNATURE=true where the bucket is public."
        )
    if any(word in said for word in _ELSEWHERE):
        return f"The bucket of {location} lies in another region: set AWS_REGION to its own."
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or any(
        word in said for word in _REFUSED
    ):
        return (
            f"{location} refuses these credentials ({doing}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, and what they may do in the bucket."
        )
    if any(word in said for word in _BUSY):
        return (
            f"{location} keeps failing ({doing}, tried again and again: {said}): its server is overloaded or broken; "
            f"later {_AGAIN}."
        )
    if any(word in said.lower() for word in _NO_CONNECTION):
        return (
            f"{location} is out of reach ({doing}, tried again and again: {said}): check the network and "
            f"AWS_ENDPOINT_URL, and {_AGAIN}."
        )
    return f"{location} failed ({doing}: {said}); {_AGAIN}."


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
