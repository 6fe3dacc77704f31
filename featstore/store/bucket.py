"""Objects in a bucket, by their paths within the store; and what object storage refuses, in one sentence each:
credentials, bucket, region, network and server told apart.

obstore reads the environment and asks for roles by itself; profiles are files, which it does not read. It is imported
where a bucket is used: only those have it installed who need it."""

import asyncio
import configparser
import os
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from featstore.errors import StoreError
from featstore.store.keys import S3Location

if TYPE_CHECKING:
    from obstore.store import S3Store

_AGAIN = "run the same command again, what is complete is kept"

_ROLE_ADDRESS = "169.254."
"""Where machines of a cloud ask for the credentials of their role: the last place that is looked at."""

_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken")
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "redirect without")
_BUSY = ("status code: 5", "status code: 429", "SlowDown")
_NO_CONNECTION = ("error sending request", "dns error", "http error", "connect", "timed out", "timeout")


class _ConditionError(Exception):
    """A condition of a write did not hold: the object is there already, or another than was thought."""


def _is_cut_off(error: Exception) -> bool:
    """Whether a connection was lost where obstore does not try again: in the middle of an answer, or before that of a
    write on a condition."""
    said = str(error).partition("\n\nDebug source")[0]
    tries = re.search(r"after (\d+) retries, max_retries: (\d+)", said)
    exhausted = tries is not None and tries.group(1) == tries.group(2)
    return ("error sending request" in said and not exhausted) or "response body" in said or "decoding" in said


def _sentence(location: S3Location, doing: str, error: Exception) -> str:
    said = " ".join(str(error).partition("\n\nDebug source")[0].split())[:400]
    denied = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
    tried = f"({doing}, tried again and again: {said})"
    if "NoSuchBucket" in said:
        return f"There is no bucket {location.bucket!r}: make it, or check the name in {location} and AWS_ENDPOINT_URL."
    if _ROLE_ADDRESS in said:
        how = f"set {keys}, or AWS_SKIP_SIGNATURE=true where the bucket is public"
        return f"{location} cannot be used without credentials: {how}."
    if any(word in said for word in _ELSEWHERE):
        return f"The bucket of {location} lies in another region: set AWS_REGION to its own."
    if denied or any(word in said for word in _REFUSED):
        return f"{location} refuses these credentials ({doing}): check {keys}, and what they may do in the bucket."
    if any(word in said for word in _BUSY):
        return f"{location} keeps failing {tried}: its server is overloaded or broken; later {_AGAIN}."
    if any(word in said.lower() for word in _NO_CONNECTION):
        return f"{location} is out of reach {tried}: check the network and AWS_ENDPOINT_URL, and {_AGAIN}."
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
    """path: within the store. modified: seconds since 1970. e_tag: of what it holds, on object storage."""

    path: str
    bytes: int
    modified: float
    e_tag: str | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """Keys are paths within the store. All raise `StoreError` where object storage cannot be used."""

    location: S3Location
    client: "S3Store"
    retries: Retries

    def read(self, key: str) -> memoryview | None:
        """An object's bytes, None where it is not there."""
        try:
            return self._ask(f"reading {key}", lambda: memoryview(self.client.get(key).bytes()))
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> None:
        """Write an object, in one PUT: a killed upload in parts would leave parts that are paid for and never seen."""
        self._ask(f"writing {key}", lambda: self.client.put(key, content, use_multipart=False))

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that is not there yet; whether this did."""
        return self._write_if(key, content, "create")

    def replace(self, key: str, content: bytes, e_tag: str | None) -> bool:
        """Write an object in the place of the one with this tag; whether it was still that one."""
        return self._write_if(key, content, {"e_tag": e_tag})

    def stat(self, key: str) -> StoredObject | None:
        """An object without its bytes, None where it is not there."""
        try:
            return _stored(self._ask(f"looking for {key}", lambda: self.client.head(key)))
        except FileNotFoundError:
            return None

    def objects(self, path: str = "") -> list[StoredObject]:
        """All objects below a path (all where it is empty); one request a thousand."""
        found = self._ask(f"listing {path or 'the store'}", lambda: list(chain(*self.client.list(path or None))))
        return [_stored(one) for one in found]

    def level(self, path: str) -> tuple[list[str], list[str]]:
        """(objects, folders) right below a path: their paths; one request a thousand."""
        found = self._ask(f"listing {path or 'the store'}", lambda: self.client.list_with_delimiter(path or None))
        return [one["path"] for one in found["objects"]], list(found["common_prefixes"])

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, a thousand a request; those that are not there are none."""
        if keys:
            self._ask(f"deleting {keys[0]}", lambda: self.client.delete(list(keys)))

    def _write_if(self, key: str, content: bytes, mode: Any) -> bool:
        try:
            self._ask(f"creating {key}", lambda: self.client.put(key, content, mode=mode, use_multipart=False))
        except _ConditionError:
            # of a try whose answer was lost the next one finds what it wrote
            found = self.read(key)
            return found is not None and bytes(found) == content
        return True

    def _ask(self, doing: str, request: Callable[[], Answer]) -> Answer:
        """What a request that may be made twice gives. obstore tries it again, see `Retries`, but for what is cut off
        (`_is_cut_off`): that is done here.

        Raises:
            StoreError: Where object storage refuses it; the sentence says what was being done and what helps.
            FileNotFoundError: Where the object is missing.
            _ConditionError: Where the condition of a write does not hold.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        last = time.monotonic() + self.retries.give_up
        tries = 0
        while True:
            try:
                return request()
            except (AlreadyExistsError, PreconditionError) as error:
                raise _ConditionError(doing) from error
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise StoreError(_sentence(self.location, doing, error)) from error
                raise
            except BaseError as error:
                if not _is_cut_off(error) or time.monotonic() > last or tries == self.retries.again:
                    raise StoreError(_sentence(self.location, doing, error)) from error
                time.sleep(min(self.retries.first_wait * 2**tries, self.retries.longest_wait))
                tries += 1


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
    limits = {
        "connect_timeout": timedelta(seconds=waits.connect),
        "read_timeout": timedelta(seconds=waits.silence),
        "timeout": timedelta(seconds=waits.request),
        **({"allow_http": True} if endpoint.startswith("http://") else {}),
    }
    first, longest = timedelta(seconds=waits.first_wait), timedelta(seconds=waits.longest_wait)
    retries_of_obstore = {
        "max_retries": waits.again,
        "retry_timeout": timedelta(seconds=waits.give_up),
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
    }
    try:
        client = S3Store(
            location.bucket,
            prefix=location.prefix,
            config=settings.config,  # type: ignore[arg-type]
            client_options=limits,  # type: ignore[arg-type]
            retry_config=retries_of_obstore,  # type: ignore[arg-type]
            credential_provider=settings.provider,
        )
    except (BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{location} cannot be opened with these AWS_ settings: {reason}.") from error
    return Bucket(location, client, waits)


def _stored(found: Mapping[str, Any]) -> StoredObject:
    return StoredObject(found["path"], int(found["size"]), found["last_modified"].timestamp(), found["e_tag"])


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
    held = bucket.stat(key)
    if held is None or time.time() - held.modified <= LEASE_SECONDS:
        return False
    return bucket.replace(key, token, held.e_tag)


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_INDIRECT = ("role_arn", "sso_session", "sso_start_url", "credential_process", "web_identity_token_file")
_ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """config: what obstore is told over the environment. provider: of credentials that change, None for none."""

    config: dict[str, str] = field(repr=False)
    provider: Any = None


def settings_of_profile(location: S3Location) -> AwsSettings:
    """Endpoint, region and credentials for a store. Raises `StoreError` for a profile that is named and missing, or
    that takes boto3 where that is not installed."""
    profile, own = _profile(location)
    stated = {
        "endpoint": _first(_ENDPOINTS) or own.get("endpoint_url"),
        "region": _first(_REGIONS) or own.get("region"),
    }
    config = {name: value for name, value in stated.items() if value}
    if _first(("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")):
        return AwsSettings(config)
    if _KEYS[0] in own and _KEYS[1] in own:
        return AwsSettings(config | {key.removeprefix("aws_"): own[key] for key in _KEYS if key in own})
    if any(name in own for name in _INDIRECT) and not _first(_ROLE_VARIABLES):
        return AwsSettings(config, _through_boto3(location, profile))
    return AwsSettings(config)


def _first(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _profile(location: S3Location) -> tuple[str, dict[str, str]]:
    """A profile's name, and what the two files say of it."""
    named = os.environ.get("AWS_PROFILE")
    name = named or "default"
    found: dict[str, str] = {}
    files = (
        (os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"), name if name == "default" else f"profile {name}"),
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), name),
    )
    for file, section in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(file).expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise StoreError(f"{file} cannot be read as AWS settings for {location}: correct it.") from error
        if parser.has_section(section):
            found |= dict(parser.items(section))
    if named and not found:
        raise StoreError(f"AWS_PROFILE names {named!r}, which is in neither of {files[0][0]} and {files[1][0]}.")
    return name, found


def _through_boto3(location: S3Location, profile: str) -> Any:
    """Sessions, roles and processes, which boto3 knows how to ask."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StoreError(
            f"The AWS profile {profile!r} for {location} takes boto3 (pip install boto3), or put keys into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    return Boto3CredentialProvider(boto3.session.Session(profile_name=profile))


class BucketStore(ObjectStore[Any]):
    """See `zarr.storage.ObjectStore`: what dualsd uses of it, with the retries of `Bucket`. Raises `StoreError` where
    object storage cannot be used."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket.client)
        self.bucket = bucket

    def __str__(self) -> str:
        return str(self.bucket.location)

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
        await asyncio.to_thread(self.bucket.write, key, value.to_bytes())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object where none is there."""
        await asyncio.to_thread(self.bucket.create, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Delete an object, be it there or not."""
        await asyncio.to_thread(self.bucket.delete, [key])

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        found = await asyncio.to_thread(self.bucket.objects, prefix)
        await asyncio.to_thread(self.bucket.delete, [one.path for one in found])

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Names right below a prefix; one request a thousand."""
        for level in await asyncio.to_thread(self.bucket.level, prefix.rstrip("/")):
            for path in level:
                yield path.rpartition("/")[2]
