"""A store's objects in a bucket that speaks S3, by obstore; and what it refuses, in one sentence each: credentials,
bucket, region, network and server told apart.

obstore reads AWS's variables and asks for roles by itself; profiles are boto3's. Both are imported where a bucket is
used: only those have them installed who need it (`dualsd[s3]`).
"""

import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.files import holder, waiting
from featstore.store.keys import LOCK, METADATA, S3Location, StoredObject

if TYPE_CHECKING:
    from obstore.store import S3Store

_AGAIN = "run the same command again, what is complete is kept"

_ROLE_ADDRESS = "169.254."
"""Where machines of a cloud ask for the credentials of their role: the last place that is looked at."""

_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken")
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "redirect without")
_BUSY = ("status code: 5", "status code: 429", "SlowDown")
_NO_CONNECTION = ("error sending request", "dns error", "http error", "connect", "timed out", "timeout")


_NEEDED = "two processes there would overwrite each other's work; take another server"


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
    if "NotImplemented" in said or "status code: 501" in said:
        return f"{location} lies on a server without conditional writes (If-None-Match): {_NEEDED}."
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


@dataclass(frozen=True)
class Bucket:
    """A prefix in a bucket, see `featstore.store.objects.Objects`. Reads and writes are tried again, see `Retries`."""

    location: S3Location
    client: "S3Store" = field(repr=False)
    retries: Retries

    def __str__(self) -> str:
        return str(self.location)

    @property
    def disk(self) -> None:
        """See `Objects.disk`."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8] | None:
        """See `Objects.get`."""

        def request() -> Any:
            if start < 0:
                return self.client.get(key, options={"range": {"suffix": -start}}).bytes()
            if stop is not None:
                return self.client.get_range(key, start=start, end=stop)
            return self.client.get(key, options={"range": {"offset": start}} if start else {}).bytes()

        try:
            return np.array(memoryview(self._ask(f"reading {key}", request)), dtype=np.uint8)
        except FileNotFoundError:
            return None

    def put(self, key: str, *pieces: bytes | memoryview) -> None:
        """See `Objects.put`; in one PUT, since a killed upload in parts leaves parts that are paid for and never
        seen."""
        content = _joined(pieces)
        self._ask(f"writing {key}", lambda: self.client.put(key, content, use_multipart=False))

    def create(self, key: str, *pieces: bytes | memoryview) -> bool:
        """See `Objects.create`."""
        return self._put_if(key, _joined(pieces), "create")

    def replace(self, key: str, content: bytes, e_tag: str | None) -> bool:
        """Write an object in the place of the one with this tag; whether it was still that one."""
        return self._put_if(key, content, {"e_tag": e_tag})

    def stat(self, key: str) -> StoredObject | None:
        """An object without its bytes, None where it is not there."""
        try:
            return _stored(self._ask(f"looking for {key}", lambda: self.client.head(key)))
        except FileNotFoundError:
            return None

    def level(self, prefix: str = "") -> tuple[list[str], list[str]]:
        """See `Objects.level`; one request a thousand."""
        found = self._ask(f"listing {prefix or 'the store'}", lambda: self.client.list_with_delimiter(prefix or None))
        paths = [one["path"] for one in found["objects"]], found["common_prefixes"]
        objects, folders = ([path.rpartition("/")[2] for path in own] for own in paths)
        return objects, folders

    def below(self, prefix: str = "") -> list[StoredObject]:
        """See `Objects.below`; one request a thousand."""
        found = self._ask(f"listing {prefix or 'the store'}", lambda: list(chain(*self.client.list(prefix or None))))
        return sorted(map(_stored, found), key=lambda one: one.key)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Objects.delete`; a thousand a request."""
        if keys:
            self._ask(f"deleting {keys[0]}", lambda: self.client.delete([*keys]))

    def remove(self, prefix: str) -> None:
        """See `Objects.remove`: rows first and metadata last, so that what a killed removal leaves is an array that
        lacks rows."""
        found = [one.key for one in self.below(prefix)]
        metadata = [key for key in found if key.endswith(f"/{METADATA}")]
        self.delete([key for key in found if key not in metadata])
        self.delete(sorted(metadata, key=len, reverse=True))

    def exists(self) -> bool:
        """See `Objects.exists`: whether a store's root does."""
        return METADATA in self.level()[0]

    def make(self, contents: Mapping[str, bytes | memoryview]) -> bool:
        """See `Objects.make`: its root comes last, and only if none came before. Raises `StoreError` where the server
        ignores conditions."""
        probe = f".probe-{uuid.uuid4().hex}"
        self.put(probe, b"1")
        ignored = self.create(probe, b"2")
        self.delete([probe])
        if ignored:
            raise StoreError(f"{self} lies on a server that ignores conditions of writes (If-None-Match): {_NEEDED}.")
        for key, content in contents.items():
            if key != METADATA:
                self.put(key, content)
        return self.create(METADATA, contents[METADATA])

    def settle(self, prefixes: Iterable[str]) -> None:
        """See `Objects.settle`: what is written is."""

    def sweep(self, prefixes: Iterable[str] = ()) -> None:
        """See `Objects.sweep`: objects are whole or not there."""

    def left_over(self) -> list[StoredObject]:
        """See `Objects.left_over`."""
        return []

    @contextmanager
    def exclusive(self, doing: str, note: Callable[[str], None]) -> Iterator[None]:
        """See `Objects.exclusive`: by an object that only one process can create, and that counts for
        `LEASE_SECONDS`."""
        token = holder(doing) + b"|" + uuid.uuid4().hex.encode()
        told = False
        while not self._take(token):
            if not told and (held := self.get(LOCK)) is not None:
                note(waiting(self, held.tobytes()))
                told = True
            time.sleep(WAIT_SECONDS)
        try:
            yield
        finally:
            held = self.get(LOCK)
            if held is not None and held.tobytes() == token:
                self.delete([LOCK])

    def _take(self, token: bytes) -> bool:
        if self.create(LOCK, token):
            return True
        held = self.stat(LOCK)
        if held is None or time.time() - held.modified <= LEASE_SECONDS:
            return False
        return self.replace(LOCK, token, held.e_tag)

    def _put_if(self, key: str, content: bytes, mode: Any) -> bool:
        try:
            self._ask(f"creating {key}", lambda: self.client.put(key, content, mode=mode, use_multipart=False))
        except _ConditionError:
            # of a try whose answer was lost the next one finds what it wrote
            found = self.get(key)
            return found is not None and found.tobytes() == content
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

        if os.getpid() != _first_process():
            raise StoreError(
                f"{self} cannot be used here: this process was forked from one that used object storage; spawn it."
            )
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


@cache
def _first_process() -> int:
    """The process that asked obstore for anything first. Those forked from it would wait for ever for threads that were
    not forked with them, even if they open a bucket of their own."""
    return os.getpid()


WAIT_SECONDS = 1.0
"""Between two looks at a lock that another process holds."""

LEASE_SECONDS = 900.0
"""For which a lock counts; what is done under it takes seconds to a few minutes."""


def _joined(pieces: Sequence[bytes | memoryview]) -> bytes:
    return b"".join(memoryview(piece).cast("B") for piece in pieces)


def _stored(found: Mapping[str, Any]) -> StoredObject:
    return StoredObject(found["path"], int(found["size"]), found["last_modified"].timestamp(), found["e_tag"])


def open_bucket(location: S3Location, retries: Retries | None = None) -> Bucket:
    """The bucket where a store lies or will lie; nothing is asked of it yet. Raises `StoreError` where obstore is not
    installed, or an AWS setting cannot be understood."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise StoreError(f"{location} needs the package obstore: pip install 'dualsd[s3]'.") from error
    waits = retries or RETRIES
    settings = settings_of(location)
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


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_FOUND_BY_OBSTORE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Variables that name credentials which obstore finds by itself; it knows no profiles."""


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """config: what obstore is told over the environment. provider: of credentials, None where it finds them itself."""

    config: dict[str, str] = field(repr=False)
    provider: Any = None


def settings_of(location: S3Location) -> AwsSettings:
    """Endpoint, region and credentials for a store: the environment's, else those of the profile `AWS_PROFILE` or
    `default`, as boto3 reads them. Raises `StoreError` for a profile that is named and missing, for files that cannot
    be read, and where a profile is needed and boto3 is not installed."""
    endpoint, region = (next(filter(None, map(os.environ.get, own)), None) for own in (_ENDPOINTS, _REGIONS))
    provider = None
    files = ("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    if "AWS_PROFILE" in os.environ or any(Path(os.environ.get(*file)).expanduser().exists() for file in files):
        try:
            import botocore.session
            from botocore.exceptions import BotoCoreError
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ImportError as error:
            raise StoreError(f"The AWS profile for {location} needs boto3: pip install 'dualsd[s3]'.") from error
        try:
            session = botocore.session.Session()
            own = session.get_scoped_config()
            endpoint, region = endpoint or own.get("endpoint_url"), region or session.get_config_variable("region")
            if not any(map(os.environ.get, _FOUND_BY_OBSTORE)) and session.get_credentials() is not None:
                provider = Boto3CredentialProvider(session)
        except BotoCoreError as error:
            raise StoreError(f"The AWS profile for {location} cannot be used: {error}.") from error
    config = {"endpoint": endpoint, "region": region}
    return AwsSettings({name: value for name, value in config.items() if value}, provider)
